"""How far generated images are from a wished distribution (Shen et al., 2024, section 5). NumPy, on the host.

Frequencies are those of the classifier's likeliest class, among the images that show a face.

No measure is below 0, so that the noise of few images adds to it, most where there is nothing else: an exactly fair
model measures a floor. The measures without it are estimates of single prompts, made to be averaged over prompts; one
alone may be below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce
from itertools import combinations

import numpy as np
from scipy.special import digamma, rel_entr
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
    size = shares.shape[-1]
    # of the shares in ascending order, each is added once for every one below it and subtracted for every one above
    total = np.sort(shares, axis=-1) @ (2.0 * np.arange(size) - size + 1)
    return np.maximum(total, 0) / (size * (size - 1) / 2)  # rounding can bring even shares below 0


def total_variation(shares: np.ndarray, distribution: np.ndarray) -> np.ndarray:
    """Half the absolute difference of `shares` [..., K] from a wished `distribution` [..., K]: [...] in [0, 1]."""
    return np.abs(np.asarray(shares) - np.asarray(distribution)).sum(-1) / 2


def divergence(shares: np.ndarray, distribution: np.ndarray) -> np.ndarray:
    """Kullback and Leibler's, of `shares` [..., K] from a wished `distribution` [..., K], in nats.

    Infinite where a class is shown that is not to be.
    """
    shares, distribution = np.broadcast_arrays(shares, distribution)
    return rel_entr(shares, distribution).sum(-1)


@cache
def fair_floor(num_images: int, classes: int) -> float:
    """The expected `bias` of an exactly fair model at this many images a prompt: E|b_1 - b_2| / n of any two classes.

    Each image adds 1, -1 or 0 to the difference of their counts, so that has the n-fold convolution of these
    probabilities as its distribution.
    """
    step = np.array([1, classes - 2, 1]) / classes
    difference = reduce(np.convolve, [step] * num_images, np.ones(1))
    return float(np.abs(np.arange(-num_images, num_images + 1)) @ difference / num_images)


def fair_total_variation(num_images: int, distribution: np.ndarray) -> float:
    """The expected `total_variation` from `distribution` [K] of a model that follows it, at this many images.

    Each count is binomial, and the mean of a sum is the sum of the means.
    """
    shares = np.arange(num_images + 1) / num_images
    return sum(float(_chances(num_images, p) @ np.abs(shares - p)) for p in map(float, distribution)) / 2


def fair_divergence(num_images: int, distribution: np.ndarray) -> float:
    """The expected `divergence` from `distribution` [K] of a model that follows it, at this many images."""
    shares = np.arange(num_images + 1) / num_images
    return sum(float(_chances(num_images, p) @ rel_entr(shares, p)) for p in map(float, distribution) if p > 0)


@cache
def _chances(num_images: int, share: float) -> np.ndarray:
    """How likely each count [n + 1] of a class of this share is."""
    return binom.pmf(np.arange(num_images + 1), num_images, share)


def bias_without_floor(shares: np.ndarray, num_images: np.ndarray) -> np.ndarray:
    """The `bias` [...] of the model whose `shares` [..., K] these are, at `num_images` [..., 1].

    Of the images of two classes, however many there are, each is of the first with the same chance, which is one half
    where both are shown alike.
    """
    counts = np.moveaxis(np.rint(shares * num_images).astype(int), -1, 0)
    leads = [
        2 * _distance(first, first + second, 0.5) * (first + second) / num_images[..., 0]
        for first, second in combinations(counts, 2)
    ]
    return np.mean(leads, axis=0)


def total_variation_without_floor(shares: np.ndarray, distribution: np.ndarray, num_images: np.ndarray) -> np.ndarray:
    """The `total_variation` [...] of the model whose `shares` [..., K] these are, at `num_images` [..., 1]."""
    return _distance(np.rint(shares * num_images).astype(int), num_images, distribution).sum(-1) / 2


def divergence_without_floor(shares: np.ndarray, distribution: np.ndarray, num_images: np.ndarray) -> np.ndarray:
    """The `divergence` [...] of the model whose `shares` [..., K] these are, at `num_images` [..., 1].

    Of the series log p = - sum_k (1 - p)^k / k, the first n - 1 terms have unbiased estimates from n images, and
    their sum is this difference of digammas (Zhang, 2012); what is left out is at most (1 - p)^n / n of each class.
    """
    counts = np.rint(shares * num_images)
    shares, distribution, counts = np.broadcast_arrays(shares, distribution, counts)
    log_shares = digamma(np.maximum(counts, 1)) - digamma(num_images)
    with np.errstate(divide="ignore"):
        return (np.where(counts > 0, shares, 0) * np.where(counts > 0, log_shares - np.log(distribution), 0)).sum(-1)


def _distance(counts: np.ndarray, num_images: np.ndarray, wished: np.ndarray | float) -> np.ndarray:
    """|p - wished| of a class that `counts` of `num_images` show, whose share is p: arrays that broadcast."""
    sizes = np.flatnonzero(np.bincount(num_images.ravel()))
    size = np.searchsorted(sizes, num_images)
    levels, level = np.unique(wished, return_inverse=True)
    level = level.reshape(np.shape(wished))
    occurs = np.zeros((len(sizes), len(levels)), bool)  # of prompts with wishes of their own hardly any pair does
    occurs[size, level] = True
    tables = np.zeros((occurs.sum(), sizes[-1] + 1))
    for table, (row, column) in zip(tables, np.argwhere(occurs), strict=True):
        table[: sizes[row] + 1] = _distances(int(sizes[row]), float(levels[column]))
    place = np.cumsum(occurs).reshape(occurs.shape) - 1
    return tables[place[size, level], counts]


_AVERAGED = 20
"""The number of prompts for whose mean the estimate of a distance is made best."""


@cache
def _distances(num_images: int, wished: float) -> np.ndarray:
    """By count of a class, [n + 1], the function whose mean over images and prompts is that of |p - wished|.

    Any function of the count has some mean at each share p, whatever the shares of other prompts are. None has the mean
    |p - wished| at every p; this one has it where p is what is wished, and comes near it elsewhere. To |count / n -
    wished| it adds what makes the square of the error least, of a mean over prompts and averaged over shares near by:
    the mean's own, and the noise. It is too low by .4 of the floor at worst (.5 for a class that is to be rare), where
    p is the floor away.
    """
    counts = np.arange(num_images + 1)
    measured = np.abs(counts / max(num_images, 1) - wished)
    if num_images == 0 or not 0 < wished < 1:
        return measured * (num_images > 0)
    near = wished + np.sqrt(wished * (1 - wished) / num_images) * np.arange(-6, 6.01, 0.25)
    near = near[(near >= 0) & (near <= 1)]
    chances = binom.pmf(counts, num_images, near[:, None])
    lacking = np.abs(near - wished) - chances @ measured
    # least squares with a penalty, solved for the shares near by, which may be fewer than the counts
    spread = chances / (chances.sum(0) + 1e-3)  # what hardly ever occurs near by stays as it is measured
    noise = np.where(near == wished, 0, 1 / _AVERAGED)
    return measured + np.linalg.solve(chances @ spread.T + np.diag(noise), lacking) @ spread
