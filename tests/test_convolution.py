"""Convolutions have autodiff's gradients, and on a CPU by programs that are quick there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import convolution
from benchmarks.convolution import HOW
from fairjax.models import layers
from fairjax.models.layers import convolve

CASES = {  # height and width of the kernel, strides, padding
    "3 x 3": ((3, 3), (1, 1), ((1, 1), (1, 1))),
    "1 x 1": ((1, 1), (1, 1), ((0, 0), (0, 0))),
    "padded on one side": ((3, 3), (1, 1), ((0, 1), (2, 0))),
    "even, not square": ((2, 4), (1, 1), ((1, 0), (1, 2))),
    "not padded": ((3, 2), (1, 1), ((0, 0), (0, 0))),
    "strided, as Downsample2D": ((3, 3), (2, 2), ((0, 1), (0, 1))),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_autodiffs(name, monkeypatch):
    sides, strides, padding = CASES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 6, 7, 5)), jax.random.normal(keys[1], (*sides, 5, 3))

    monkeypatch.setattr(layers, "device", lambda: ("cpu", "cpu"))

    def pulled(way):
        y, pull_back = jax.vjp(lambda x, kernel: way(x, kernel, strides, padding, **HOW), x, kernel)
        return y, *pull_back(jax.random.normal(keys[2], y.shape))

    wanted, found = (jax.jit(partial(pulled, way))() for way in (lax.conv_general_dilated, convolve))
    for theirs, ours in zip(wanted, found, strict=True):
        # sums of at most 60 products of normal numbers, taken in another order
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


def test_a_gradient_has_the_type_of_its_image(monkeypatch):
    monkeypatch.setattr(layers, "device", lambda: ("cpu", "cpu"))
    x, kernel = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 2), jnp.bfloat16)
    gradients = jax.grad(lambda *args: convolve(*args, (1, 1), ((1, 1), (1, 1)), **HOW).sum(), (0, 1))(x, kernel)
    assert [leaf.dtype for leaf in gradients] == [jnp.bfloat16] * 2
    assert gradients[0][0, 1, 1, 0] == 18 and gradients[1][1, 1, 0, 0] == 16


def test_on_a_cpu_no_gradient_asks_for_a_kernel_that_names_its_channels_the_other_way(monkeypatch):
    """What makes XLA's convolutions slow there; autodiff's own do, so that this would be seen."""
    monkeypatch.setattr(layers, "device", lambda: ("cpu", "cpu"))
    arguments = jax.device_put((jnp.ones((3, 3, 8, 4)), jnp.ones((2, 1, 16, 16, 4))), jax.devices("cpu")[0])
    slow, quick = (
        jax.jit(partial(convolution.gradients, way)).lower(*arguments).compile().as_text() for way in convolution.WAYS
    )
    assert "_01oi->" in slow and "_01oi->" not in quick


@pytest.mark.parametrize("platform", ("cuda", "tpu"))
def test_accelerators_keep_autodiffs_program(platform, monkeypatch):
    monkeypatch.setattr(layers, "device", lambda: (platform, ""))
    arguments = jnp.ones((3, 3, 8, 4)), jnp.ones((2, 1, 16, 16, 4))
    usual, ours = (
        jax.jit(partial(convolution.gradients, way)).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        for way in convolution.WAYS
    )
    assert usual == ours


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_convolution_of_doubled_images_is_that_of_them_without_making_them(platform, monkeypatch):
    """Its gradients, too, and for less than half of the products."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 4, 6, 16)), jax.random.normal(keys[1], (3, 3, 16, 8))
    monkeypatch.setattr(layers, "device", lambda: (platform, platform))

    def pulled(way):
        def run(x, kernel):
            y, pull_back = jax.vjp(way, x, kernel)
            return y, *pull_back(jax.random.normal(keys[2], y.shape))

        return jax.jit(run)(x, kernel), jax.jit(way).lower(x, kernel).compile().cost_analysis()["flops"]

    def plain(x, kernel):
        return lax.conv_general_dilated(x.repeat(2, 1).repeat(2, 2), kernel, (1, 1), ((1, 1), (1, 1)), **HOW)

    (wanted, all_products), (found, few) = pulled(plain), pulled(layers.convolve_doubled)
    for theirs, ours in zip(wanted, found, strict=True):
        # sums of at most 200 products of normal numbers, taken in another order
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-5)
    assert few < 0.6 * all_products  # with the sums of weights, which are much of it for so small an image
    half = layers.convolve_doubled(x.astype(jnp.bfloat16), kernel)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), wanted[0], atol=0.02 * np.abs(wanted[0]).max())
