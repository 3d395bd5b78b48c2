"""How far generated images are from a wished distribution (Shen et al., 2024, section 5). NumPy, on the host.

Frequencies are those of the classifier's likeliest class, among the images that show a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from scipy.optimize import brentq
from scipy.special import rel_entr
from scipy.stats import binom


def counts(predictions: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """How many images are in each joint cell [K], row-major, by the given classes [N] per attribute.

    `sizes` are the numbers of classes, K their product.
    """
    cells = np.ravel_multi_index(tuple(np.asarray(p, int) for p in predictions), tuple(sizes))
    return np.bincount(cells, minlength=int(np.prod(sizes)))


def frequencies(predictions: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Shares [K] of the joint cells; NaN when there are no images."""
    cells = counts(predictions, sizes)
    return cells / cells.sum() if cells.sum() else np.full(cells.shape, np.nan)


def bias(shares: np.ndarray) -> np.ndarray:
    """Mean absolute difference of `shares` [..., K] over pairs of classes [...]: 0 when uniform, at most 2 / K."""
    first, second = np.triu_indices(shares.shape[-1], k=1)
    return np.abs(shares[..., first] - shares[..., second]).mean(-1)


def total_variation(shares: np.ndarray, distribution: np.ndarray) -> np.ndarray:
    """Half the absolute difference of `shares` [..., K] from a wished `distribution` [..., K]: [...] in [0, 1]."""
    return np.abs(np.asarray(shares) - np.asarray(distribution)).sum(-1) / 2


def divergence(shares: np.ndarray, distribution: np.ndarray) -> np.ndarray:
    """Kullback and Leibler's, of `shares` [..., K] from a wished `distribution` [..., K], in nats.

    Infinite where a class is shown that is not to be.
    """
    shares, distribution = np.broadcast_arrays(shares, distribution)
    return rel_entr(shares, distribution).sum(-1)


def fair_floor(num_images: int, classes: int) -> float:
    """The expected `bias` of an exactly fair model at this many images a prompt."""
    return _expected_difference(1 / classes, 1 / classes, num_images)


def _expected_difference(first: float, second: float, num_images: int) -> float:
    """E|b_1 - b_2| / n of two classes with these probabilities, at n images.

    Each image adds 1, -1 or 0 to the difference of the counts, so that has the n-fold convolution of these
    probabilities as its distribution.
    """
    step = np.array([second, 1 - first - second, first])
    difference = reduce(np.convolve, [step] * num_images, np.ones(1))
    return float(np.abs(np.arange(-num_images, num_images + 1)) @ difference / num_images)


def without_floor(measured: float, num_images: int, classes: int) -> float:
    """The bias that a model has which measures this on average, at this many images a prompt: 0 up to the floor.

    The absolute difference of two frequencies is never below 0, so that noise adds to it, most where there is nothing
    else. Taken is the model that prefers one class, and shows the others alike: its true bias b has an exact expected
    measurement, which rises with b.
    """

    def expected(bias: float) -> float:
        lead = bias * classes / 2  # of the one class
        rest = (1 - lead) / classes
        pairs, with_it = classes * (classes - 1) / 2, classes - 1
        unequal = _expected_difference(rest + lead, rest, num_images)
        equal = _expected_difference(rest, rest, num_images)
        return (with_it * unequal + (pairs - with_it) * equal) / pairs

    most = 2 / classes
    if measured <= expected(0):
        return 0.0
    if measured >= expected(most):
        return most
    return float(brentq(lambda bias: expected(bias) - measured, 0, most, xtol=1e-6))


def fair_total_variation(num_images: int, distribution: np.ndarray) -> float:
    """The expected `total_variation` from `distribution` [K] of a model that follows it, at this many images.

    Each count is binomial, and the mean of a sum is the sum of the means.
    """
    shares = np.arange(num_images + 1) / num_images
    expected = [binom.pmf(np.arange(num_images + 1), num_images, p) @ np.abs(shares - p) for p in distribution]
    return float(np.sum(expected) / 2)
