"""How far generated images are from a wished distribution (Shen et al., 2024, section 5). NumPy, on the host.

Frequencies are those of the classifier's likeliest class, among the images that show a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from scipy.stats import binom


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


def fair_floor(num_images: int, classes: int) -> float:
    """The expected `bias` of an exactly fair model at this many images a prompt.

    By symmetry E|b_1 - b_2| / n. Each image adds 1, -1 or 0 to the difference of two counts, with
    probabilities 1 / k, 1 / k and 1 - 2 / k, so the difference has the n-fold convolution of these as its
    distribution.
    """
    step = np.array([1, classes - 2, 1]) / classes
    difference = reduce(np.convolve, [step] * num_images, np.ones(1))
    return float(np.abs(np.arange(-num_images, num_images + 1)) @ difference / num_images)


def fair_total_variation(num_images: int, distribution: np.ndarray) -> float:
    """The expected `total_variation` from `distribution` [K] of a model that follows it, at this many images.

    Each count is binomial, and the mean of a sum is the sum of the means.
    """
    shares = np.arange(num_images + 1) / num_images
    expected = [binom.pmf(np.arange(num_images + 1), num_images, p) @ np.abs(shares - p) for p in distribution]
    return float(np.sum(expected) / 2)
