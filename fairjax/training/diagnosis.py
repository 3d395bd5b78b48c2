"""What of a training step is not finite. It is a program of its own, compiled when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from fairjax import parallel
from fairjax.models.functional import in_chunks
from fairjax.training.state import State
from fairjax.training.step import Batch, Frozen, Step

CAUSES = (
    "the frozen model's pixels", "the pixels", "what classifiers say of the frozen model's", "what classifiers say",
    "the image semantics", "the face embedding", "the fairness loss", "the image loss", "the face loss",
    "the loss of other attributes",
)  # fmt: skip
"""Where a step may have numbers that are not finite, each a consequence of those before it."""


def diagnosis(step: Step, mesh: jax.sharding.Mesh) -> Callable[[State, Frozen, Batch], jax.Array]:
    """Which of CAUSES are not finite in a step, for each image of all devices: bool [p * n, causes]."""

    def unsound(state: State, frozen: Frozen, batch: Batch) -> jax.Array:
        sample = step.sampler(frozen, batch)
        original, images = sample({}, batch.plain_ids), sample(state.bundle, batch.ids)
        each, (verdict, frozen_verdict), _ = step.losses_of(images, original, frozen, batch)
        size, judges = step.training.microbatch, step.judges
        identity = in_chunks(partial(judges.identity, frozen.judges), size, images, verdict.faces)
        logits = [jnp.concatenate(list(seen.logits.values()), axis=1) for seen in (frozen_verdict, verdict)]
        semantics = jnp.concatenate(in_chunks(partial(judges.meaning, frozen.judges), size, images), axis=1)
        faces = jnp.where(verdict.has_face[:, None], identity, 0)
        checked = (original, images, *logits, semantics, faces, *each.values())  # in the order of CAUSES
        return jnp.stack([~jnp.isfinite(value.reshape(len(value), -1)).all(axis=1) for value in checked], axis=1)

    return parallel.spread(unsound, mesh, (parallel.REPLICATED,) * 3, parallel.SPREAD)
