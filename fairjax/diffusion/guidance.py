"""Classifier-free guidance (Ho and Salimans, 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Denoise = Callable[[Any, jax.Array, jax.Array, Any], jax.Array]
"""(params, latents [b, h, w, c], timesteps [b], context, every leaf [k b, ...]) -> output [k b, h, w, c].

Of k contexts of each image, all first ones first.
"""


class Conditioning(NamedTuple):
    """What a guided network is given: two contexts of the same structure, every leaf [b, ...]."""

    unconditional: Any
    conditional: Any


def guided(denoise: Denoise, scale: float, *, apart: bool = False) -> Denoise:
    """The network output u + scale (c - u), where u is the one without and c the one with the prompt.

    Both come from one call, with two contexts of each image, the unconditional ones first. A scale of at most 1
    means no guidance: the unconditional half is not computed. The result's context is a `Conditioning`.

    Args:
        apart: make it two calls of b each. Where nothing of the unconditional one is differentiated, a gradient then
            computes half as much: its output is not needed, either.
    """
    if scale <= 1:
        return lambda params, latents, timesteps, context: denoise(params, latents, timesteps, context.conditional)

    def together(params: Any, latents: jax.Array, timesteps: jax.Array, context: Conditioning) -> list[jax.Array]:
        both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), *context)
        return jnp.split(denoise(params, latents, timesteps, both), 2)

    def one_by_one(params: Any, latents: jax.Array, timesteps: jax.Array, context: Conditioning) -> list[jax.Array]:
        return [denoise(params, latents, timesteps, each) for each in context]

    def call(params: Any, latents: jax.Array, timesteps: jax.Array, context: Conditioning) -> jax.Array:
        outputs = (one_by_one if apart else together)(params, latents, timesteps, context)
        # in the type of the latents before the scale magnifies what a bfloat16 network rounds off
        unconditional, conditional = (output.astype(latents.dtype) for output in outputs)
        return unconditional + scale * (conditional - unconditional)

    return call
