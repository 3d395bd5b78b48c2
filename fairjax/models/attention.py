"""Attention, by the kernel that suits the device, the type and the size; chosen here and nowhere else."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

Kernel = Literal["xla", "cudnn", "pallas"]

_BLOCK = 512
"""How many queries, or keys, the TPU's kernel holds at a time, at most."""

_LANES = 128
"""What the TPU computes on side by side: heads are padded to a multiple of it, lengths must be one."""

_NEW = math.inf

_LONG = 1024
"""From how many queries and keys on the TPU's kernel pays; their scores are what would fill the memory."""


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False) -> jax.Array:
    """softmax(query key^T / sqrt(channels)) value, for each head.

    Args:
        query: [b, n, heads, channels].
        key, value: [b, m, heads, channels].
        is_causal: whether a query sees only the keys up to its own place.

    Returns:
        [b, n, heads, channels], in the type of the query.
    """
    kernel = choose(*device(), query.dtype, query.shape[1], key.shape[1], query.shape[3])
    return by(kernel)(query, key, value, is_causal=is_causal)


def choose(
    platform: str, kind: str, capability: float, dtype: jnp.dtype, queries: int, keys: int, channels: int
) -> Kernel:  # fmt: skip
    """The kernel for a device, as `device` tells of it, and for heads of so many channels.

    cuDNN's is for Ampere (8.0) and newer; it takes 16-bit numbers and heads of up to 128 channels, in eights. The TPU's
    takes what its blocks divide.
    """
    if platform == "gpu" and kind.startswith("NVIDIA") and capability >= 8:
        if jnp.dtype(dtype).itemsize == 2 and channels % 8 == 0 and channels <= 128:
            return "cudnn"
    if platform == "tpu" and min(queries, keys) >= _LONG and queries % _LANES == keys % _LANES == 0:
        return "pallas"
    return "xla"


def by(kernel: Kernel):
    """`attend` by a kernel of one's own choice: (query, key, value, *, is_causal) -> as `attend`."""
    own = {"pallas": _pallas, "cudnn": _cudnn}
    return own.get(kernel) or partial(jax.nn.dot_product_attention, implementation="xla")


def device() -> tuple[str, str, float]:
    """Platform ("cpu", "gpu", "tpu"), kind, and of an NVIDIA GPU the compute capability, of what is compiled for.

    Which need not be what is compiled on: what is not here does not tell its capability, and is taken for new.
    """
    there = jax.sharding.get_abstract_mesh().abstract_device
    here = jax.devices()[0]
    if there is None or there.device_kind == here.device_kind:
        return here.platform, here.device_kind, _capability(here)
    return there.platform, there.device_kind, _NEW


def _capability(gpu: jax.Device) -> float:
    """Infinite of what has none."""
    capability = getattr(gpu, "compute_capability", "")
    return float(capability) if re.fullmatch(r"\d+\.\d+", capability) else _NEW


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False) -> jax.Array:
    """Its gradient takes even lengths only: odd ones (77 words, 257 patches) get a row that nobody looks at."""
    length, keys = query.shape[1], key.shape[1]
    q, k, v = (jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (query, key, value))
    lengths = {"key_value_seq_lengths": jnp.full(len(k), keys, jnp.int32)} if keys % 2 else {}
    out = jax.nn.dot_product_attention(q, k, v, is_causal=is_causal, implementation="cudnn", **lengths)
    return out[:, :length]


def _pallas(query: jax.Array, key: jax.Array, value: jax.Array, *, is_causal: bool = False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash  # slow to import, and of use on TPUs only

    channels = query.shape[3]
    pad = [(0, 0)] * 3 + [(0, -channels % _LANES)]
    q, k, v = (jnp.pad(x.swapaxes(1, 2), pad) for x in (query, key, value))
    block_q, block_k = (_divisor(x.shape[2]) for x in (q, k))
    sizes = flash.BlockSizes(
        block_q=block_q, block_k_major=block_k, block_k=block_k, block_b=1,
        block_q_major_dkv=block_q, block_k_major_dkv=block_k, block_k_dkv=block_k, block_q_dkv=block_q,
        block_k_major_dq=block_k, block_k_dq=block_k, block_q_dq=block_q,
    )  # fmt: skip
    out = flash.flash_attention(q, k, v, causal=is_causal, sm_scale=channels**-0.5, block_sizes=sizes)
    return out[..., :channels].swapaxes(1, 2)


def _divisor(length: int) -> int:
    """The largest block that divides a length, which is a multiple of _LANES."""
    return max(size for size in range(_LANES, _BLOCK + 1, _LANES) if length % size == 0)
