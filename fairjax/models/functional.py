"""Networks as pure functions: an NNX definition turned into `apply(params, ...)` over a nested dict of arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Params = dict[Any, Any]
"""A nested dict of arrays whose path, joined by dots, is the PyTorch name of the tensor."""


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network definition without its parameters.

    `abstract` is the parameter tree as `jax.ShapeDtypeStruct`s, batch statistics included: building it
    allocates nothing, whatever the size of the model.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    graphdef: nnx.GraphDef
    abstract: Params

    def apply(self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """Calls the network (or another of its methods) with `params`; differentiable in every array."""
        return getattr(nnx.merge(self.graphdef, params), method)(*args, **kwargs)

    def init(self, key: jax.Array) -> Params:
        """Draws fresh parameters."""
        return jax.jit(lambda key: nnx.to_pure_dict(nnx.state(self.make(_Keys(key)))))(key)


class _Keys:
    """The keys of `nnx.Rngs(key)`, for parameters alone, counted by Python.

    NNX counts in an array. While a network is traced, it asks the traced count for its sharding, and JAX writes a long
    message about why it has none: it looks through all that was traced before, three quarters of the time it takes to
    build a UNet.
    """

    def __init__(self, key: jax.Array):
        self.key, self.count = key, itertools.count()

    def params(self) -> jax.Array:
        return jax.random.fold_in(self.key, next(self.count))


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Splits the module that `make(rngs)` builds into a static definition and an abstract parameter tree."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(_Keys(jax.random.key(0)))))
    return Network(make, graphdef, nnx.to_pure_dict(state))


def cast(tree: Params, dtype: jnp.dtype) -> Params:
    """The tree with its numbers in another floating type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def in_chunks(function: Callable[..., Any], size: int | None, *trees: Any) -> Any:
    """`function(*trees)`, `size` rows at a time: what it needs on the way is needed for so many rows only.

    Differentiable; the gradient computes each chunk again.

    Args:
        function: takes trees of arrays [n, ...] and gives one, its rows independent of each other.
        size: None is all rows at once.
    """
    rows = len(jax.tree.leaves(trees)[0])
    if size is None or size >= rows:
        return function(*trees)
    chunk, whole = jax.checkpoint(lambda part: function(*part)), rows // size * size
    first = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), trees)
    done = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), jax.lax.map(chunk, first))
    if whole == rows:
        return done
    rest = chunk(jax.tree.map(lambda x: x[whole:], trees))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), done, rest)


def to_pixels(images: Any) -> Any:
    """Images as networks see them: uint8 [...] -> float32 in [-1, 1]; of NumPy or JAX, as they are."""
    return images.astype(np.float32) / 127.5 - 1


def to_uint8(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as bytes; what is outside is clipped."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def num_params(tree: Params) -> int:
    """How many numbers a (possibly abstract) parameter tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def digest(tree: Any) -> str:
    """SHA-256 of a tree's arrays and of their names: tells weights apart, wherever they were read from."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def misfits(problems: Mapping[str, Sequence[str]], listed: int = 3) -> str:
    """What does not fit a network, by kind, in one line: "7 missing (a, b, c, ...); 1 unexpected (d)"."""

    def some(items: Sequence[str]) -> str:
        return ", ".join([*items[:listed], "..."] if len(items) > listed else items)

    return "; ".join(f"{len(items)} {kind} ({some(items)})" for kind, items in problems.items() if items)
