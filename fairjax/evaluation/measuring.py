"""Scoring: what images show, as the classifier that measures sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fairjax import parallel
from fairjax.faces.judges import Judge, Verdict
from fairjax.models.functional import Params, to_pixels

_BATCH = 64


class Seen(NamedTuple):
    """What a classifier says of p prompts' n images each."""

    probs: dict[str, np.ndarray]  # attribute -> [p, n, classes]
    has_face: np.ndarray  # [p, n], bool
    recognised: np.ndarray | None  # [p, n], index of the thing the picture shows most likely
    boxes: np.ndarray  # [p, n, 4], of the faces in pixels: left, top, right, bottom

    def part(self, rows: slice) -> Seen:
        """Of some of the prompts."""
        return jax.tree.map(lambda array: array[rows], self)

    @staticmethod
    def concatenated(parts: Sequence[Seen]) -> Seen:
        """Of all prompts of the parts."""
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


@functools.lru_cache
def _judging(judge: Judge, mesh: jax.sharding.Mesh) -> Callable[..., Verdict]:
    def look(params: dict[str, Params], images: jax.Array) -> Verdict:
        return judge.look(params, to_pixels(images))

    return parallel.spread(look, mesh, (parallel.REPLICATED, parallel.SPREAD), parallel.SPREAD)


def over_images(program: Callable[[Params, jax.Array], Any], params: Params, images: np.ndarray) -> Any:
    """What a spread program (params, images [batch, H, W, 3]) gives for images [p, n, H, W, 3], a batch at a time.

    Returns:
        a tree of arrays [p, n, ...], on this host.
    """
    mesh, flat = parallel.mesh(), images.reshape(-1, *images.shape[2:])
    size = -(-_BATCH // mesh.size) * mesh.size
    params, found = parallel.replicate(params, mesh), []
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        batch = parallel.share_out(parallel.filled(part, mesh, size), mesh)
        found.append(jax.tree.map(parallel.fetch, program(params, batch)))

    def joined(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate(parts)[: len(flat)].reshape(*images.shape[:2], *parts[0].shape[1:])

    return jax.tree.map(joined, *found)


def classify(judge: Judge, params: dict[str, Params], images: np.ndarray) -> Seen:
    """What images uint8 [p, n, H, W, 3] show."""
    verdict = over_images(_judging(judge, parallel.mesh()), params, images)
    things = None if verdict.recognised is None else verdict.recognised.argmax(-1)
    probs = {name: np.asarray(jax.nn.softmax(logits)) for name, logits in verdict.logits.items()}
    return Seen(probs, verdict.has_face, things, verdict.faces.boxes)
