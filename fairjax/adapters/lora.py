"""Low-rank adaptation as functions on parameter trees (Hu et al., 2021, arXiv 2106.09685).

An adapter is a flat dict: for each adapted module, by its dotted path (the PyTorch module name), the two
factors of the change of its weight. Networks never know of it: they are applied to `merge(params, adapter)`,
through which gradients flow. A merge costs inputs * rank * outputs multiplications a module, once for the
whole batch and all denoising steps; the low-rank branch it replaces costs rank * (inputs + outputs) a token.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fairjax.models.functional import Params, misfits


class Factors(TypedDict):
    """The change of one module's kernel: `down @ up`."""

    down: Float[Array, "inputs rank"]
    up: Float[Array, "rank outputs"]


Adapter = dict[str, Factors]

TEXT_ENCODER_TARGETS = (r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)", r".*\.mlp\.(fc1|fc2)")
"""The attention and MLP projections of a CLIP text encoder, as the paper adapts them (section 5)."""

UNET_TARGETS = (r".*\.attn1\.to_(q|k|v|out\.0)", r".*\.attn2\.to_(q|k|v|out\.0)")
"""The self- and cross-attention projections of a UNet."""


def kernels(params: Params) -> dict[str, Any]:
    """The kernels of a (possibly abstract) parameter tree, by the dotted path of their module."""
    return {
        _module(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"
    }


def _module(path: tuple[Any, ...]) -> str:
    return ".".join(str(entry.key) for entry in path[:-1])


def features(kernel: Any) -> tuple[int, int]:
    """(inputs, outputs) of the kernel of a linear layer or a 1x1 convolution; ValueError for any other."""
    *window, inputs, outputs = kernel.shape
    if any(size != 1 for size in window):
        raise ValueError(
            f"only linear layers and 1x1 convolutions can be adapted, not a kernel of shape {kernel.shape}"
        )
    return inputs, outputs


def select(params: Params, targets: Iterable[str]) -> dict[str, Any]:
    """The kernels whose module path matches one of `targets` (regular expressions for the whole path).

    Raises:
        ValueError: naming a pattern that matches nothing.
    """
    found, every = {}, kernels(params)
    for pattern in targets:
        matches = {path: kernel for path, kernel in every.items() if re.fullmatch(pattern, path)}
        if not matches:
            raise ValueError(f"LoRA target {pattern!r} matches none of the network's {len(every)} layers")
        found |= matches
    return found


def init(params: Params, rank: int, key: jax.Array, targets: Iterable[str], dtype: Any = jnp.float32) -> Adapter:
    """A fresh adapter, which changes nothing yet: `down` ~ N(0, 1/rank^2), `up` = 0.

    The same as diffusers' `LoRALinearLayer`, with which the paper's adapters were trained.

    Args:
        params: the network's parameter tree; abstract leaves will do.
        rank: inner width of the factors, at least 1.
        key: each module draws from this key folded with its own path, so that what a module gets depends
            neither on the order of modules nor on which others are adapted.
        targets: regular expressions, as for `select`.
    """
    if rank < 1:
        raise ValueError(f"LoRA rank = {rank} must be at least 1")

    def factors(path: str, kernel: Any) -> Factors:
        inputs, outputs = features(kernel)
        module_key = jax.random.fold_in(key, jnp.uint32(zlib.crc32(path.encode())))
        return {
            "down": jax.random.normal(module_key, (inputs, rank), dtype) / rank,
            "up": jnp.zeros((rank, outputs), dtype),
        }

    return {path: factors(path, kernel) for path, kernel in select(params, targets).items()}


def compact(params: Params, targets: Iterable[str], dtype: Any) -> Params:
    """The parameters in another type, but for the kernels of `targets`, and for what networks read in float32 anyway.

    The latter are the scales and biases of norms: what has one axis.
    """
    kept = select(params, targets)

    def smaller(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf if leaf.ndim == 1 or _module(path) in kept else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(smaller, params)


def merge(params: Params, adapter: Adapter, scale: float | jax.Array = 1.0) -> Params:
    """The parameters with `scale * down @ up` added to each adapted kernel; differentiable in the adapter.

    The sum is made in the wider of the two dtypes and rounded to the kernel's. Keep `params` in float32 while
    training: the change of an early step is below the resolution of a bfloat16 weight.

    Args:
        scale: alpha / rank, in the terms of the paper of LoRA and of peft.

    Raises:
        ValueError: as `check` does.
    """
    check(params, adapter)

    def merged(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        module = _module(path)
        if path[-1].key != "kernel" or module not in adapter:
            return leaf
        change = scale * (adapter[module]["down"] @ adapter[module]["up"])
        return (leaf + change.reshape(leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(merged, params)


def check(params: Params, adapter: Adapter) -> None:
    """Refuses an adapter that was made for another network than that of `params`.

    Raises:
        ValueError: one line that counts the adapted modules that the network has not, and those of another shape,
            and lists the first of each.
    """
    every, unknown, misshapen = kernels(params), [], []
    for path, factors in adapter.items():
        if path not in every:
            unknown.append(path)
        elif features(every[path]) != (shape := (factors["down"].shape[0], factors["up"].shape[1])):
            misshapen.append(f"{path} maps {features(every[path])} features, its adapter {shape}")
    if wrong := misfits({"not in the network": unknown, "misshapen": misshapen}):
        count = len(unknown) + len(misshapen)
        raise ValueError(f"{count} of {len(adapter)} adapted layers do not fit: {wrong}")


def rank(adapter: Adapter) -> int:
    """The largest rank in `adapter`."""
    return max(factors["down"].shape[1] for factors in adapter.values())
