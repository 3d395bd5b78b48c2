"""The large networks see as many images at a time as the memory of a device takes, and no result depends on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairjax import memory
from fairjax.models.functional import in_chunks

ROW = 1 << 20
"""Bytes that a row of `program` takes."""

SIZES = (1, 2, 3, 4, 6, 12)


def program(size):
    """Sorts rows of random numbers, which stand in memory."""

    def sorted_rows(key):
        return jnp.sort(jax.random.normal(key, (size, ROW // 4)), axis=1)[:, 0]

    return jax.jit(sorted_rows).lower(jax.random.key(0)).compile()


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (3, 3), (5, 4), (11, 6), (12, 12), (50, 12)])
def test_the_largest_size_that_fits_is_found(rows, expected):
    tried, one = [], memory.needed(program(1))
    each = (memory.needed(program(12)) - one) / 11

    def compiled(size):
        tried.append(size)
        return program(size)

    limit = (one + (rows - 1) * each) * 1.01 / memory.MARGIN
    assert memory.fitting(compiled, SIZES, limit, "it") == expected
    assert tried[0] == 12 and len(tried) <= 3


def test_some_of_the_memory_is_left_for_what_the_compiler_does_not_count():
    assert memory.fitting(program, SIZES, memory.needed(program(12)), "it") == 6


def test_without_a_limit_all_are_seen_at_once_and_nothing_is_compiled():
    assert memory.fitting(lambda size: pytest.fail("compiled"), SIZES, None, "it") is None


def test_what_fits_nowhere_is_one_line():
    with pytest.raises(
        ValueError, match=r"a walk takes 0.0\d GiB of a device's memory with one image at a time; it has 0.00 GiB:"
    ):
        memory.fitting(program, SIZES, ROW, "a walk")


@pytest.mark.parametrize("size", [None, 1, 3, 4, 8, 9])
def test_chunks_change_no_value_and_no_gradient(size):
    x, w = (np.random.default_rng(number).normal(size=(8, 5)).astype(np.float32) for number in range(2))

    def by_rows(w, x):
        return {"sum": (x * w[:1]).sum(1), "tanh": jnp.tanh(x * w[1:2])}

    def value(w, x, size):
        found = in_chunks(lambda x: by_rows(w, x), size, x)
        return (found["sum"] ** 2).sum() + (found["tanh"] ** 3).sum()

    wished = jax.value_and_grad(lambda w, x: value(w, x, None), argnums=(0, 1))(w, x)
    found = jax.value_and_grad(lambda w, x: value(w, x, size), argnums=(0, 1))(w, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wished)
