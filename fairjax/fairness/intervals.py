"""How sure a measurement is: bootstrap intervals, and class shares corrected for the errors of the classifier.

What is resampled are counts: of p prompts, how many of their images were taken for each of K classes. NumPy, on the
host; random numbers come from a generator that is passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

Statistic = Callable[..., np.ndarray]
"""Shares [..., K], and what else is told of the prompts [..., k] -> a number for each prompt [...]."""


_TOGETHER = 1 << 18
"""How many numbers are resampled at once: as many as caches hold."""


class Interval(NamedTuple):
    """A value and the ends of its confidence interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two models, its interval, and how often chance alone would make one as large."""

    value: float
    low: float
    high: float
    p_value: float


class Resampled(NamedTuple):
    """Class shares of prompts, and those of prompts and images drawn anew from them (Efron, 1979): `bootstrap`.

    Of p prompts, K classes; n of the prompts show any.
    """

    shown: np.ndarray  # [p] bool, which show any; the others are left out
    shares: np.ndarray  # [n, K]
    which: np.ndarray  # [draws, n], the prompts that were drawn
    again: np.ndarray  # [draws, n, K], their shares

    def interval(self, statistic: Statistic, *about: np.ndarray, level: float = 0.95) -> Interval:
        """The mean over prompts of a statistic of their class shares, with a percentile interval.

        An absolute difference grows with the noise that resampling adds to that which it has already: the percentiles
        are shifted so that the mean of the resampled values is the measured one.

        Args:
            about: arrays [p, k] that the statistic is given beside the shares, the targets of the prompts say.
        """
        if not self.shown.any():
            return Interval(*[float("nan")] * 3)
        own = [np.asarray(rows)[self.shown] for rows in about]
        value = float(statistic(self.shares, *own).mean())
        means = statistic(self.again, *(rows[self.which] for rows in own)).mean(1)
        low, high = ends(means, len(self.shares), level) + value - means.mean()
        return Interval(value, float(low), float(high))


def ends(means: np.ndarray, prompts: int, level: float) -> np.ndarray:
    """The ends [2, ...] of the interval of means [draws, ...] over so many prompts that were drawn anew.

    Few prompts vary less among themselves than those that they stand for: the percentiles lie further out, by as much
    as Student's t is wider than the normal distribution (Hesterberg, 2015). One prompt speaks of itself alone.
    """
    tail = (1 - level) / 2
    if prompts > 1:
        tail = norm.cdf(student.ppf(tail, prompts - 1) * np.sqrt(prompts / (prompts - 1)))
    return np.quantile(means, [tail, 1 - tail], axis=0)


def bootstrap(counts: np.ndarray, rng: np.random.Generator, draws: int = 2000, prompts: bool = True) -> Resampled:
    """Draws images anew within each prompt, and prompts among themselves.

    Args:
        counts: [p, K] int, images by class.
        prompts: whether these prompts stand for others like them; False speaks of these prompts alone.
    """
    counts = np.asarray(counts)
    shown = counts.sum(1) > 0
    counts = counts[shown]
    totals, number = counts.sum(1), len(counts)
    shares = counts / totals[:, None]
    if not number:
        return Resampled(shown, shares, *np.zeros((2, 0), int))
    every = np.broadcast_to(np.arange(number), (draws, number))
    which = rng.integers(number, size=(draws, number)) if prompts else every
    return Resampled(shown, shares, which, rng.multinomial(totals[which], shares[which]) / totals[which][..., None])


def paired(
    first: np.ndarray, second: np.ndarray, classes: int, statistic: Statistic, rng: np.random.Generator,
    *about: np.ndarray, draws: int = 1000, flips: int = 10_000, level: float = 0.95,
) -> Difference:  # fmt: skip
    """How two models differ, second less first, in the mean over prompts of a statistic, on images of the same noise.

    What both have in common, prompts and noise, is drawn alike for both, so that it does not widen the interval. The
    p value is that of a test that exchanges the models prompt by prompt, which makes no difference where they are alike
    (a sign-flip test, two-sided).

    Args:
        first, second: [p, n] int, the class of each image; -1 where it shows none. Prompts of which a model shows none
            are left out.
        classes: how many there are.
        about: arrays [p, k] that the statistic is given beside the shares.
    """
    shown = (first >= 0).any(1) & (second >= 0).any(1)
    if not shown.any():
        return Difference(*[float("nan")] * 4)
    about = tuple(np.asarray(rows)[shown] for rows in about)
    number, images = int(shown.sum()), first.shape[1]
    sides = [np.eye(classes + 1)[labels[shown]][..., :classes] for labels in (first, second)]  # [p, n, K], -1 is none

    def values(weights: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Of prompts `which` [..., p], with their images counted by `weights` [..., p, n]: the differences [..., p]."""
        measured = []
        for side in sides:
            counts = np.einsum("...pn,...pnk->...pk", weights, side[which])
            total = counts.sum(-1, keepdims=True)
            shares = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)  # of none, none
            measured.append(statistic(shares, *(rows[which] for rows in about)))
        return measured[1] - measured[0]

    differences = values(np.ones((number, images)), np.arange(number))
    value, again = float(differences.mean()), []
    together = max(1, _TOGETHER // (number * images * classes))
    for start in range(0, draws, together):
        size = (min(together, draws - start), number)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=size)
        drawn = values(weights, rng.integers(number, size=size))
        measured = ~np.isnan(drawn)  # a prompt of which no image was drawn that shows a class is left out, as above
        again.extend(np.where(measured, drawn, 0).sum(-1)[measured.any(-1)] / measured.sum(-1)[measured.any(-1)])
    low, high = ends(np.array(again), number, level) + value - np.mean(again)
    flipped = rng.choice([-1.0, 1.0], size=(flips, number)) @ differences / number
    as_large = np.count_nonzero(np.abs(flipped) >= abs(value) - 1e-12)
    return Difference(value, float(low), float(high), (1 + as_large) / (1 + flips))


def corrected(observed: np.ndarray, confusion: np.ndarray, steps: int = 500) -> np.ndarray:
    """The class shares [..., K] that a classifier with these errors would most likely have seen as `observed`.

    The maximum likelihood of a mixture of the rows of the confusion matrix, by expectation maximisation: unlike the
    inverse of the matrix, it gives no negative shares.

    Args:
        observed: [..., K], counts or shares of what images were taken for.
        confusion: [..., K, K], row by row how many images that show a class were taken for each.
    """
    observed = np.asarray(observed, np.float64)
    taken_for = np.asarray(confusion, np.float64)
    taken_for = taken_for / np.maximum(taken_for.sum(-1, keepdims=True), 1e-300)
    seen = observed / np.maximum(observed.sum(-1, keepdims=True), 1e-300)
    shares = np.full(np.broadcast_shapes(seen.shape, taken_for.shape[:-1]), 1 / seen.shape[-1])
    for _ in range(steps):
        expected = np.einsum("...t,...tp->...p", shares, taken_for)
        ratio = np.divide(seen, expected, out=np.zeros_like(expected + seen), where=expected > 0)
        shares = shares * np.einsum("...tp,...p->...t", taken_for, ratio)
        shares = shares / np.maximum(shares.sum(-1, keepdims=True), 1e-300)
    return shares


def corrected_interval(
    counts: np.ndarray, confusion: np.ndarray, rng: np.random.Generator, *, draws: int = 1000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corrected shares [K] of images counted by prompt and class [p, K], and the ends of their intervals [K].

    What is corrected is the mean over prompts, as everywhere: a prompt with few faces counts as much as any. Prompts,
    the images of each, and those that the confusion matrix was counted on are drawn anew.
    """
    rows, confusion = np.atleast_2d(counts), np.asarray(confusion)
    rows = rows[rows.sum(1) > 0]
    totals, judged = rows.sum(1), confusion.sum(1)
    seen = rows / totals[:, None]
    which = rng.integers(len(rows), size=(draws, len(rows)))
    again = (rng.multinomial(totals[which], seen[which]) / totals[which][..., None]).mean(1)
    # a class that was never mistaken may be: half an image in every cell
    smoothed = (confusion + 0.5) / (confusion + 0.5).sum(1, keepdims=True)
    matrices = np.stack([rng.multinomial(n, row, size=draws) for n, row in zip(judged, smoothed, strict=True)], axis=1)
    shares = corrected(again, matrices)
    low, high = ends(shares, len(rows), level)
    return corrected(seen.mean(0), confusion), low, high
