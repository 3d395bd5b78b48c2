"""Weights between PyTorch and fairjax, by rule: the tree path is the PyTorch name, only leaves differ.

kernel [kh, kw, in, out] <-> weight [out, in, kh, kw]        scale, embedding <-> weight
kernel [in, out]         <-> weight [out, in]                mean, var        <-> running_mean, running_var
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.models.functional import Params, misfits

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def torch_name(path: Iterable[Any]) -> str:
    """The PyTorch name of the leaf at `path` (a `jax.tree_util` key path, or plain keys)."""
    *parents, leaf = (str(getattr(key, "key", key)) for key in path)
    return ".".join([*parents, _LEAVES.get(leaf, leaf)])


def _axes(path: tuple[Any, ...], ndim: int, to_torch: bool) -> tuple[int, ...]:
    if str(getattr(path[-1], "key", path[-1])) != "kernel":
        return tuple(range(ndim))
    if ndim == 4:
        return (3, 2, 0, 1) if to_torch else (2, 3, 1, 0)
    return (1, 0)


def from_torch(abstract: Params, tensors: Mapping[str, np.ndarray], ignore: Iterable[str] = ()) -> Params:
    """Fills an abstract parameter tree with the tensors of a PyTorch state dict, as numpy arrays.

    Args:
        abstract: nested dict of `jax.ShapeDtypeStruct`, whose dtypes the result has.
        tensors: arrays by PyTorch name.
        ignore: endings of tensor names that are expected and not needed (buffers such as `position_ids`).

    Raises:
        ValueError: one line that counts the missing, unexpected and misshapen tensors and lists the first of each.
    """
    missing, misshapen, used = [], [], set()

    def take(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray | None:
        name = torch_name(path)
        used.add(name)
        if name not in tensors:
            missing.append(name)
            return None
        tensor = np.asarray(tensors[name])
        expected = tuple(leaf.shape[axis] for axis in _axes(path, len(leaf.shape), to_torch=True))
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            misshapen.append(f"{name} is of type {tensor.dtype}, expected floating point")
            return None
        if tensor.shape != expected:
            misshapen.append(f"{name} has shape {tensor.shape}, expected {expected}")
            return None
        return np.asarray(tensor.transpose(_axes(path, tensor.ndim, to_torch=False)), order="C").astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(take, abstract)
    ignore = tuple(ignore)
    unexpected = [name for name in tensors if name not in used and not name.endswith(ignore or ("\0",))]
    if wrong := misfits({"missing": missing, "unexpected": unexpected, "misshapen": misshapen}):
        count = len(missing) + len(unexpected) + len(misshapen)
        raise ValueError(f"{count} tensors do not fit: {wrong}")
    return params


def to_torch(params: Params) -> dict[str, np.ndarray]:
    """The exact inverse of `from_torch`: arrays by PyTorch name."""
    return {
        torch_name(path): np.asarray(np.asarray(leaf).transpose(_axes(path, np.ndim(leaf), to_torch=True)), order="C")
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
