"""How the classifiers' training pictures are varied. The two classifiers see different variations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fairjax.faces.learning import Pixels
from fairjax.models.functional import to_pixels


def _mixed(
    images: np.ndarray, reconstructions: np.ndarray, indices: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Half of the pictures as the autoencoder gives them back: what is to be classified is generated."""
    coded = rng.random(len(indices)) < 0.5
    picked = np.where(coded[:, None, None, None], reconstructions[indices], images[indices])
    return to_pixels(picked)


def lit_and_grained(images: np.ndarray, reconstructions: np.ndarray) -> Pixels:
    """Mirrored, with other contrast and grain of any strength up to 0.15.

    The grain makes the gradient that finetuning follows one of shapes: without it, what moves the classifier most
    is a pattern that nobody sees.
    """

    def pixels(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x = _mixed(images, reconstructions, indices, rng)
        x = np.where(rng.random((len(x), 1, 1, 1)) < 0.5, x[:, :, ::-1], x)
        contrast = rng.uniform(0.94, 1.06, (len(x), 1, 1, 1))
        grain = rng.uniform(0, 0.15, (len(x), 1, 1, 1)) * rng.normal(0, 1, x.shape)
        return (x * contrast + grain).astype(np.float32)

    return pixels


def shifted_and_blurred(images: np.ndarray, reconstructions: np.ndarray) -> Pixels:
    """Shifted by up to 3 pixels, some of them softened, a fifth with the left ten columns greyed out."""

    def pixels(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x = _mixed(images, reconstructions, indices, rng)
        soft = (4 * x + np.roll(x, 1, 1) + np.roll(x, -1, 1) + np.roll(x, 1, 2) + np.roll(x, -1, 2)) / 8
        x = np.where(rng.random((len(x), 1, 1, 1)) < 0.4, soft, x)
        padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
        rows, columns = rng.integers(0, 7, (2, len(x)))
        x = np.stack([p[r : r + 64, c : c + 64] for p, r, c in zip(padded, rows, columns, strict=True)])
        x[rng.random(len(x)) < 0.2, :, :10] = 0.0
        return x.astype(np.float32)

    return pixels


AUGMENTATIONS = {"classifier": lit_and_grained, "classifier_eval": shifted_and_blurred}


def softened_and_grained(pairs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Pairs of faces uint8 [n, 2, h, w, 3], half of them softened, with grain: indices [k] -> float32 [k, 2, h, w, 3].

    What is drawn depends on the indices alone.
    """

    def faces(indices: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(indices)
        x = to_pixels(pairs[indices])
        soft = (4 * x + np.roll(x, 1, 2) + np.roll(x, -1, 2) + np.roll(x, 1, 3) + np.roll(x, -1, 3)) / 8
        x = np.where(rng.random((*x.shape[:2], 1, 1, 1)) < 0.5, soft, x)
        return (x + rng.normal(0, 0.05, x.shape)).astype(np.float32)

    return faces
