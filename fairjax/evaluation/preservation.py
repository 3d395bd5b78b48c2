"""What else changes: how alike images of the same noise are before and after, and how varied they are.

By networks that say what an image means, such as CLIP and DINOv2: the similarities are what the paper calls CLIP-I and
DINO.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from fairjax import parallel
from fairjax.evaluation.measuring import over_images
from fairjax.faces.judges import Semantics
from fairjax.models.functional import Params


@functools.lru_cache
def _looking(part: Semantics, mesh: jax.sharding.Mesh) -> Callable[[Params, jax.Array], jax.Array]:
    def look(params: Params, images: jax.Array) -> jax.Array:
        found = part.embed(params, images.astype(jnp.float32) / 127.5 - 1)
        return found / jnp.linalg.norm(found, axis=-1, keepdims=True)

    return parallel.spread(look, mesh, (parallel.REPLICATED, parallel.SPREAD), parallel.SPREAD)


def features(part: Semantics, params: Params, images: np.ndarray) -> np.ndarray:
    """Embeddings [p, n, d], of length 1, of images uint8 [p, n, H, W, 3]."""
    return over_images(_looking(part, parallel.mesh()), params, images)


def preserved(before: np.ndarray, after: np.ndarray, labels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What two models' images of the same noise have in common.

    Args:
        before, after: embeddings [p, n, d], of length 1.
        labels: [p, n] of "before" and of "after": the class that each image shows; -1 where it shows none.

    Returns:
        similarity: mean cosine of the two images of the same noise, 1 where nothing changes.
        diversity: of "before" and "after", mean cosine distance of two images of the same prompt and class, 0 where
            all are alike; None where no two are.
        frechet: distance of the two sets of embeddings. frechet_floor: of the first model's even images from its odd
            ones, which differ by chance alone. None where there are not enough images.
    """
    halves = [before[:, start::2].reshape(-1, before.shape[-1]) for start in (0, 1)]
    sets = [x.reshape(-1, x.shape[-1]) for x in (before, after)]
    return {
        "similarity": float(np.mean(np.sum(before * after, axis=-1))),
        "diversity": {"before": diversity(before, labels["before"]), "after": diversity(after, labels["after"])},
        "frechet": frechet(*sets) if len(sets[0]) > 1 else None,
        "frechet_floor": frechet(*halves) if min(map(len, halves)) > 1 else None,
    }


def diversity(features: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean cosine distance over all pairs of images of the same prompt and class; None where there are none."""
    distances, pairs = 0.0, 0
    for own, classes in zip(features, labels, strict=True):
        for label in set(classes[classes >= 0].tolist()):
            alike = own[classes == label].astype(np.float64)
            count = len(alike) * (len(alike) - 1)
            distances += count - (np.square(alike.sum(0)).sum() - np.square(alike).sum())
            pairs += count
    return float(distances / pairs) if pairs else None


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of features [n, d], taken as Gaussian (Heusel et al., 2017)."""
    gap = first.mean(0) - second.mean(0)
    a, b = (np.atleast_2d(np.cov(x.T)) for x in (first, second))
    root = scipy.linalg.sqrtm(a @ b).real
    return float(gap @ gap + np.trace(a + b - 2 * root))
