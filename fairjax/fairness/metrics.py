"""How far generated images are from a wished distribution (Shen et al., 2024, section 5). NumPy, on the host.

Frequencies are those of the classifier's likeliest class, among the images that show a face.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import reduce

import numpy as np


def frequencies(predictions: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Shares [K] of the joint cells, row-major, among images with the given classes [N] per attribute.

    `sizes` are the numbers of classes, K their product. NaN when there are no images.
    """
    cells = np.ravel_multi_index(tuple(np.asarray(p, int) for p in predictions), tuple(sizes))
    counts = np.bincount(cells, minlength=int(np.prod(sizes)))
    return counts / counts.sum() if counts.sum() else np.full(counts.shape, np.nan)


def bias(shares: np.ndarray) -> float:
    """Mean absolute difference of the `shares` [K] over pairs of classes: 0 when uniform, at most 2 / K."""
    first, second = np.triu_indices(shares.shape[0], k=1)
    return float(np.abs(shares[first] - shares[second]).mean())


def total_variation(shares: np.ndarray, distribution: np.ndarray) -> float:
    """Half the absolute difference of `shares` [K] from a wished `distribution` [K]: in [0, 1]."""
    return float(np.abs(np.asarray(shares) - np.asarray(distribution)).sum() / 2)


@dataclasses.dataclass(frozen=True)
class PromptMetrics:
    """What the images of one prompt show. NaN where no image has a face."""

    shares: tuple[np.ndarray, ...]  # per attribute [k_a]
    bias: tuple[float, ...]  # per attribute
    low_confidence: tuple[float, ...]  # per attribute, share of faces whose likeliest class is below the confidence
    joint_shares: np.ndarray  # [K]
    joint_bias: float  # over the intersections
    distance: float  # total variation of the joint shares from the wished distribution
    no_face: float  # share of images without a face


def prompt_metrics(
    probs: Sequence[np.ndarray], has_face: np.ndarray, distribution: np.ndarray, confidence: float = 0.8
) -> PromptMetrics:
    """Metrics of one prompt's N images.

    Args:
        probs: per attribute [N, k_a], class probabilities.
        has_face: [N] bool.
        distribution: [K] wished, over the joint cells, row-major.
        confidence: what a prediction needs in order not to count as unsure.
    """
    has_face = np.asarray(has_face, bool)
    seen = [np.asarray(p)[has_face] for p in probs]
    sizes = [p.shape[1] for p in seen]
    classes = [p.argmax(axis=1) for p in seen]
    shares = tuple(frequencies([c], [size]) for c, size in zip(classes, sizes, strict=True))
    joint = frequencies(classes, sizes)
    return PromptMetrics(
        shares=shares,
        bias=tuple(bias(s) for s in shares),
        low_confidence=tuple(
            float((p.max(axis=1) < confidence).mean()) if has_face.any() else float("nan") for p in seen
        ),
        joint_shares=joint,
        joint_bias=bias(joint),
        distance=total_variation(joint, distribution),
        no_face=float(1 - has_face.mean()),
    )


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over prompts, as the paper's tables report."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}"


def spread(values: Sequence[float]) -> Spread:
    """Over the prompts that have a value; those without (NaN: no image has a face) are left out."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return Spread(float(values.mean()), float(values.std())) if values.size else Spread(float("nan"), float("nan"))


def summary(prompts: Sequence[PromptMetrics], attributes: Sequence[str]) -> dict[str, Spread]:
    """Mean and deviation over prompts of every scalar; `attributes` are names in the order of `probs`."""
    rows = {}
    for position, name in enumerate(attributes):
        rows[f"bias/{name}"] = spread([p.bias[position] for p in prompts])
        rows[f"low_confidence/{name}"] = spread([p.low_confidence[position] for p in prompts])
    if len(attributes) > 1:
        rows["bias/" + "_x_".join(attributes)] = spread([p.joint_bias for p in prompts])
    rows["distance"] = spread([p.distance for p in prompts])
    rows["no_face"] = spread([p.no_face for p in prompts])
    return rows


def fair_floor(num_images: int, classes: int) -> float:
    """The expected `bias` of an exactly fair model at this many images a prompt.

    By symmetry E|b_1 - b_2| / n. Each image adds 1, -1 or 0 to the difference of two counts, with
    probabilities 1 / k, 1 / k and 1 - 2 / k, so the difference has the n-fold convolution of these as its
    distribution.
    """
    step = np.array([1, classes - 2, 1]) / classes
    difference = reduce(np.convolve, [step] * num_images, np.ones(1))
    return float(np.abs(np.arange(-num_images, num_images + 1)) @ difference / num_images)
