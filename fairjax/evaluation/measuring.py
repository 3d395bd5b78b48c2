"""Generating and scoring: what a model shows, as the classifier that measures sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import parallel
from fairjax.adapters.bundle import Bundle
from fairjax.faces import judges
from fairjax.faces.classifier import Classifier
from fairjax.models.functional import Params
from fairjax.pipeline import Pipeline

_BATCH = 64


class Seen(NamedTuple):
    """What a classifier says of p prompts' n images each."""

    probs: dict[str, np.ndarray]  # attribute -> [p, n, classes]
    has_face: np.ndarray  # [p, n], bool
    recognised: np.ndarray | None  # [p, n], index of the thing the picture shows most likely


@functools.lru_cache
def _judging(classifier: Classifier, mesh: jax.sharding.Mesh) -> Callable[..., judges.Verdict]:
    def look(params: Params, images: jax.Array) -> judges.Verdict:
        return judges.judge(classifier, params, images.astype(jnp.float32) / 127.5 - 1)

    return parallel.spread(look, mesh, (parallel.REPLICATED, parallel.SPREAD), parallel.SPREAD)


def classify(classifier: Classifier, params: Params, images: np.ndarray) -> Seen:
    """What images uint8 [p, n, H, W, 3] show."""
    mesh, flat = parallel.mesh(), images.reshape(-1, *images.shape[2:])
    program, size = _judging(classifier, mesh), -(-_BATCH // mesh.size) * mesh.size
    verdicts = []
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        verdicts.append(jax.tree.map(lambda x, n=len(part): np.asarray(x)[:n], program(params, filled)))
    verdict = jax.tree.map(lambda *parts: np.concatenate(parts).reshape(*images.shape[:2], *parts[0].shape[1:]), *verdicts)
    things = None if verdict.recognised is None else verdict.recognised.argmax(-1)
    probs = {name: np.asarray(jax.nn.softmax(logits)) for name, logits in verdict.logits.items()}
    return Seen(probs, verdict.has_face, things)


def generate_and_classify(
    pipeline: Pipeline, classifier: Classifier, params: Params, prompts: Sequence[str], num_images: int, *,
    bundle: Bundle | None = None, seed: int, num_steps: int, guidance_scale: float, batch_size: int,
    on_batch: Callable[[int], None] = lambda images: None,
) -> tuple[np.ndarray, Seen]:  # fmt: skip
    """Images uint8 [p, n, H, W, 3] of the prompts, and what they show."""
    images = pipeline.generate(
        prompts, num_images, bundle=bundle, seed=seed, num_steps=num_steps, guidance_scale=guidance_scale,
        batch_size=batch_size, on_batch=on_batch,
    )  # fmt: skip
    return images, classify(classifier, params, images)
