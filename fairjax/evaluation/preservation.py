"""What else changes: how alike images of the same noise stay, how varied they are, how like what was asked for.

By networks that say what an image means, such as CLIP and DINOv2: the similarities are the paper's CLIP-I and DINO, the
alignment with the prompt is its CLIP-T, where the networks are (`judges.evaluation_semantics`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import parallel
from fairjax.evaluation.measuring import over_images
from fairjax.faces.judges import Semantics, TextTower
from fairjax.models.functional import Params, to_pixels


@functools.lru_cache
def _looking(part: Semantics, mesh: jax.sharding.Mesh) -> Callable[[Params, jax.Array], jax.Array]:
    def look(params: Params, images: jax.Array) -> jax.Array:
        found = part.embed(params, to_pixels(images))
        return found / jnp.linalg.norm(found, axis=-1, keepdims=True)

    return parallel.spread(look, mesh, (parallel.REPLICATED, parallel.SPREAD), parallel.SPREAD)


def features(part: Semantics, params: Params, images: np.ndarray) -> np.ndarray:
    """Embeddings [p, n, d], of length 1, of images uint8 [p, n, H, W, 3]."""
    return over_images(_looking(part, parallel.mesh()), params, images)


def text_features(tower: TextTower, prompts: Sequence[str]) -> np.ndarray:
    """Embeddings [p, d], of length 1, of prompts."""
    found = np.asarray(tower.embed(prompts), np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def preserved(
    columns: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], prompts: np.ndarray | None = None
) -> dict[str, Any]:
    """What the images of several models, made of the same noise, have in common with those of the first.

    Args:
        columns: by model, embeddings [p, n, d], of length 1.
        labels: by model [p, n], the class that each image shows; -1 where it shows none.
        prompts: embeddings [p, d], of length 1, of what was asked for, where they lie in the same space.

    Returns: by model
        similarity: mean cosine of its and the first's image of the same noise, 1 where nothing changes.
        frechet: distance of one half of its embeddings from the other half of the first's, which are of other noise;
            None where there are not enough images.
        diversity: mean cosine distance of two images of the same prompt and class, 0 where all are alike; None where no
            two are.
        alignment: mean cosine of image and prompt; left out without `prompts`.
    and frechet_floor: of the first's even images from its odd ones, which differ by chance alone: what a model that
    changes nothing has.
    """
    base, *others = columns
    flat = {name: x.reshape(-1, x.shape[-1]) for name, x in columns.items()}
    halves = {name: [x[:, start::2].reshape(-1, x.shape[-1]) for start in (0, 1)] for name, x in columns.items()}
    enough = min(map(len, halves[base])) > 1

    def apart(name: str) -> float | None:
        pairs = zip(halves[base], reversed(halves[name]), strict=True)
        return float(np.mean([frechet(own, other) for own, other in pairs])) if enough else None

    found: dict[str, Any] = {
        "similarity": {name: float(np.sum(flat[base] * flat[name], axis=-1).mean()) for name in others},
        "frechet": {name: apart(name) for name in others},
        "frechet_floor": apart(base),
        "diversity": {name: diversity(x, labels[name]) for name, x in columns.items()},
    }
    if prompts is not None:
        found["alignment"] = {name: float(np.einsum("pnd,pd->pn", x, prompts).mean()) for name, x in columns.items()}
    return found


def diversity(features: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean cosine distance of two images of the same prompt and class; None where there are none.

    Each class of a prompt counts as much as any: over all pairs the mean would be of the class that is shown most, and
    change with the shares where no class does.
    """
    found = []
    for own, classes in zip(features, labels, strict=True):
        for label in set(classes[classes >= 0].tolist()):
            alike = own[classes == label].astype(np.float64)
            count = len(alike) * (len(alike) - 1)
            if count:
                found.append(1 - (np.square(alike.sum(0)).sum() - np.square(alike).sum()) / count)
    return float(np.mean(found)) if found else None


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of features [n, d], taken as Gaussian (Heusel et al., 2017).

    Without a matrix' square root, which is not to be had of fewer images than features: of covariances A'A and B'B the
    root of the product has the singular values of AB' for eigenvalues.
    """
    gap = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    a, b = (np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1.0), mode="r") for x in (first, second))
    common = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(float(gap @ gap + np.square(a).sum() + np.square(b).sum() - 2 * common), 0.0)
