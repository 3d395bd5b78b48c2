"""Every kernel computes the same attention, and each device gets the one that suits it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from fairjax import parallel
from fairjax.models import attention

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
INFINITE = math.inf  # the compute capability of what has none


def plainly(query, key, value, is_causal=False):
    """The formula, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bnhc,bmhc->bhnm", query, key) / np.sqrt(query.shape[-1])
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhc->bnhc", weights / weights.sum(-1, keepdims=True), value)


def inputs(queries, keys, heads, channels):
    rng = np.random.default_rng(0)
    lengths = (queries, keys, keys)
    return [rng.normal(size=(1, length, heads, channels)).astype(np.float32) for length in lengths]


@pytest.mark.parametrize(
    ("kernel", "keys", "channels", "is_causal"),
    [
        ("xla", 77, 5, False),
        ("xla", 9, 8, True),
        ("pallas", 256, 40, False),
        ("pallas", 128, 80, False),
        ("pallas", 128, 160, True),
    ],
)
def test_every_kernel_equals_the_formula_in_value_and_gradient(kernel, keys, channels, is_causal):
    """The TPU's on simulated TPUs, heads padded; its tolerance is that of sums taken block by block."""
    q, k, v = inputs(keys if is_causal else 128, keys, 2, channels)
    attend = attention.by(kernel)
    weight = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def value(kernel, q, k, v):
        return jnp.sum(kernel(q, k, v, is_causal=is_causal) * weight)

    with pltpu.force_tpu_interpret_mode(), jax.default_matmul_precision("highest"):
        ours = attend(q, k, v, is_causal=is_causal)
        gradients = jax.grad(lambda *x: value(attend, *x), argnums=(0, 1, 2))(q, k, v)
    np.testing.assert_allclose(ours, plainly(q, k, v, is_causal), atol=2e-5)
    expected = jax.grad(lambda *x: value(attention.by("xla"), *x), argnums=(0, 1, 2))(q, k, v)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("queries", "keys"), [(128, 77), (9, 9)])
def test_cudnn_is_given_even_lengths_and_told_the_true_ones(monkeypatch, queries, keys):
    """There is no GPU here: XLA stands in for the kernel, which refuses the gradient of odd lengths (jax 0.11)."""
    by_xla = jax.nn.dot_product_attention

    def kernel(query, key, value, *, implementation, **told):
        assert implementation == "cudnn" and query.shape[1] % 2 == key.shape[1] % 2 == 0
        return by_xla(query, key, value, implementation="xla", **told)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    q, k, v = inputs(queries, keys, 2, 8)
    np.testing.assert_allclose(attention.by("cudnn")(q, k, v), plainly(q, k, v), atol=2e-5)
    gradients = jax.grad(lambda *x: attention.by("cudnn")(*x).sum(), argnums=(0, 1, 2))(q, k, v)
    expected = jax.grad(lambda *x: by_xla(*x).sum(), argnums=(0, 1, 2))(q, k, v)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("device", "dtype", "queries", "keys", "channels", "kernel"),
    [
        (("cpu", "cpu", INFINITE), FLOAT32, 4096, 4096, 40, "xla"),
        (("gpu", "NVIDIA H200", 9.0), BFLOAT16, 4096, 4096, 40, "cudnn"),
        (("gpu", "NVIDIA H200", 9.0), BFLOAT16, 1024, 77, 80, "cudnn"),
        (("gpu", "NVIDIA H200", 9.0), BFLOAT16, 256, 256, 160, "xla"),  # wider than its kernel takes
        (("gpu", "NVIDIA H200", 9.0), BFLOAT16, 4096, 4096, 36, "xla"),  # in eights
        (("gpu", "NVIDIA A100", 8.0), BFLOAT16, 4096, 4096, 40, "cudnn"),
        (("gpu", "NVIDIA GeForce RTX 2080 Ti", 7.5), BFLOAT16, 4096, 4096, 40, "xla"),  # cuDNN has none for it
        (("gpu", "NVIDIA H200", 9.0), FLOAT32, 4096, 4096, 40, "xla"),
        (("gpu", "AMD Instinct MI300X", INFINITE), BFLOAT16, 4096, 4096, 40, "xla"),
        (("tpu", "TPU v5 lite", INFINITE), BFLOAT16, 4096, 4096, 40, "pallas"),
        (("tpu", "TPU v5 lite", INFINITE), FLOAT32, 9216, 9216, 64, "pallas"),  # 768 pixels
        (("tpu", "TPU v5 lite", INFINITE), BFLOAT16, 4096, 77, 40, "xla"),  # the words of a prompt
        (("tpu", "TPU v5 lite", INFINITE), BFLOAT16, 5776, 5776, 40, "xla"),  # 608 pixels: no multiple of 128
        (("tpu", "TPU v5 lite", INFINITE), BFLOAT16, 256, 256, 160, "xla"),
    ],
)
def test_each_device_gets_its_kernel(device, dtype, queries, keys, channels, kernel):
    assert attention.choose(*device, dtype, queries, keys, channels) == kernel


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("channels", [40, 80, 160])  # those of Stable Diffusion 1.x
def test_what_is_compiled_for_decides_not_what_is_compiled_on(channels):
    q, k, v = (jax.ShapeDtypeStruct((1, 1024, 2, channels), jnp.bfloat16) for _ in range(3))
    everywhere = (parallel.REPLICATED,) * 3

    def gradient(q, k, v):
        return jax.grad(lambda *x: attention.attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    mesh = parallel.mesh_of("v5e:2x2")
    program = parallel.spread(gradient, mesh, everywhere, everywhere)
    assert "tpu_custom_call" in program.lower(*parallel.shapes((q, k, v), mesh)).compile().as_text()
    here = parallel.spread(gradient, parallel.mesh(1), everywhere, everywhere)
    assert "tpu_custom_call" not in here.lower(q, k, v).as_text()
