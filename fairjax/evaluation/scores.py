"""What images show, counted: class shares, bias and distance to what is wished, for a prompt and over prompts.

A prompt's scores are a nested dict of numbers, ready for JSON: None where no image shows a face, or a divergence is not
finite. Those of several prompts are the means of what they have, and of a divergence only where all are finite.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fairjax.evaluation.measuring import Seen
from fairjax.fairness import metrics
from fairjax.fairness.attributes import Attribute, cell_names, select
from fairjax.fairness.intervals import Resampled, Statistic, bootstrap, corrected_interval
from fairjax.fairness.intervals import paired as pair_difference

CONFIDENT = 0.8
"""What a prediction needs in order not to count as unsure."""

Names = tuple[str, ...]
"""One attribute, or several that are counted jointly."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is counted: each attribute that a classifier tells, and those of the target jointly.

    Attributes:
        attributes: all that the classifier tells.
        targeted: names of those that the target speaks of, in its order.
    """

    attributes: tuple[Attribute, ...]
    targeted: Names

    def counted(self) -> list[Names]:
        """Every attribute; then every pair of the target's, and all of them together."""
        single = [(attribute.name,) for attribute in self.attributes]
        pairs = list(combinations(self.targeted, 2))
        return [*single, *pairs, *([self.targeted] if len(self.targeted) > 2 else [])]

    def sizes(self, names: Names) -> tuple[int, ...]:
        """How many classes each of these has."""
        known = {attribute.name: len(attribute.classes) for attribute in self.attributes}
        return tuple(known[name] for name in names)

    def cells(self, names: Names) -> tuple[str, ...]:
        """What the joint classes of these are called."""
        return cell_names(select(names, self.attributes))

    def cells_of(self, names: Names, seen: Seen) -> np.ndarray:
        """[p, n] the joint class of these that each image shows; -1 without a face."""
        labels = [seen.probs[name].argmax(-1) for name in names]
        return np.where(seen.has_face, np.ravel_multi_index(labels, self.sizes(names)), -1)

    def wished(self, names: Names, distribution: np.ndarray) -> np.ndarray | None:
        """What the target's `distribution` [K] says of these: [k], None where one of them is not in it."""
        if not set(names) <= set(self.targeted):
            return None
        others = tuple(axis for axis, name in enumerate(self.targeted) if name not in names)
        cells = np.asarray(distribution, np.float64).reshape(self.sizes(self.targeted))
        return np.minimum(cells.sum(axis=others).reshape(-1), 1)  # rounded, thirds are more than 1 together

    def is_even(self, names: Names, distributions: np.ndarray) -> bool | None:
        """Whether each of `distributions` [p, K] wishes these evenly; None where one of them is not in the target."""
        rows = [self.wished(names, row) for row in distributions]
        return None if rows[0] is None else all(np.allclose(row, row.mean()) for row in rows)

    def of_prompt(
        self,
        probs: Mapping[str, np.ndarray],
        has_face: np.ndarray,
        distribution: np.ndarray,
        recognised: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """The scores of one prompt's n images.

        Args:
            probs: by attribute [n, classes], class probabilities.
            has_face: [n] bool; only these images are counted.
            distribution: [K], what is wished of this prompt, over the target's joint cells.
            recognised: [n] bool, whether the image shows the subject; None where that is not known.
        """
        labels = {name: p[has_face].argmax(-1) for name, p in probs.items()}
        scores: dict[str, Any] = {}
        for names in self.counted():
            counts = metrics.counts([labels[name] for name in names], self.sizes(names))
            shares = counts / counts.sum() if counts.sum() else np.full(counts.shape, np.nan)
            cells = zip(self.cells(names), map(_number, shares), strict=True)
            faces = int(counts.sum())
            entry: dict[str, Any] = {
                "bias": _number(metrics.bias(shares)),
                "fair_bias": metrics.fair_floor(faces, len(counts)) if faces else None,
                "frequencies": dict(cells),
                "counts": counts.tolist(),
            }
            if (wished := self.wished(names, distribution)) is not None:
                entry["total_variation"] = _number(metrics.total_variation(shares, wished))
                entry["fair_total_variation"] = metrics.fair_total_variation(faces, wished) if faces else None
                entry["divergence"] = _number(metrics.divergence(shares, wished))
                entry["fair_divergence"] = metrics.fair_divergence(faces, wished) if faces else None
            scores[" x ".join(names)] = entry
        unsure = [probs[name][has_face].max(-1) < CONFIDENT for name in self.targeted]
        scores["low_confidence"] = float(np.mean(unsure)) if has_face.any() else None
        scores["no_face"] = float(1 - has_face.mean())
        if recognised is not None:
            scores["recognised"] = float(recognised.mean())
        return scores


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def intervals(
    scoring: Scoring, prompts: Sequence[Mapping[str, Any]], wished: np.ndarray, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """By what is counted, what goes with the means over prompts of bias, total variation, divergence and class shares.

    Of each its 95% interval; but for the shares also it and its interval `without_floor`: without what chance adds at
    the number of images that show a face. None where no image does, `without_floor` where no prompt has two: one image
    alone is no less likely of a fair model. A divergence that is infinite for any prompt is so in the mean:
    `divergence` is None then too, and `divergence_infinite` says for how many.

    Args:
        prompts: what `of_prompt` gave, of p prompts.
        wished: [p, K], the distributions that were wished of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for names in scoring.counted():
        key = " x ".join(names)
        counts = np.array([scores[key]["counts"] for scores in prompts])
        drawn = bootstrap(counts, np.random.default_rng(seed))
        images = counts.sum(1, keepdims=True)
        several = bootstrap(np.where(images > 1, counts, 0), np.random.default_rng(seed))
        found[key] = _chance(drawn, several, metrics.bias, metrics.bias_without_floor, 2 / counts.shape[1], images)
        if len(names) == 1 or names == scoring.targeted:
            found[key]["frequencies_interval"] = _share_intervals(scoring.cells(names), drawn, int(counts.sum()))
        targets = [scoring.wished(names, row) for row in wished]
        if targets[0] is None:
            continue
        about = np.array(targets)
        without_floor = metrics.total_variation_without_floor
        found[key] |= _chance(drawn, several, metrics.total_variation, without_floor, 1, images, about)
        infinite = int(((counts > 0) & (about == 0)).any(1).sum())
        none = bootstrap(np.zeros_like(counts), np.random.default_rng(seed))
        finite = (none, none) if infinite else (drawn, several)
        found[key] |= _chance(*finite, metrics.divergence, metrics.divergence_without_floor, math.inf, images, about)
        found[key] |= {"divergence_infinite": infinite} | ({"divergence": None} if infinite else {})
    return found


def _chance(
    drawn: Resampled, several: Resampled, measure: Statistic, without_floor: Statistic, most: float,
    images: np.ndarray, *about: np.ndarray,
) -> dict[str, Any]:  # fmt: skip
    """The interval of a measure, and it without its floor, of `several` images, between 0 and `most`; None of none."""
    name = measure.__name__
    interval = drawn.interval(measure, *about)
    if math.isnan(interval.value):
        return dict.fromkeys((f"{name}_interval", f"{name}_without_floor", f"{name}_without_floor_interval"))
    without = several.interval(without_floor, *about, images)
    value, low, high = np.clip(without, 0, most).tolist()
    unknown = math.isnan(value)
    return {
        f"{name}_interval": np.clip(interval[1:], 0, most).tolist(),
        f"{name}_without_floor": None if unknown else value,
        f"{name}_without_floor_interval": None if unknown else [low, high],
    }


def _share_intervals(classes: Sequence[str], drawn: Resampled, faces: int) -> dict[str, list[float] | None]:
    """By class, the interval of its share; None where there are no images.

    Of a class that all of them show, or none, no draw is otherwise: it reaches to the share of which that has a chance
    of one in forty (Clopper and Pearson, 1934).
    """
    found: dict[str, list[float] | None] = {}
    unseen = 1 - 0.025 ** (1 / max(faces, 1))
    for place, name in enumerate(classes):
        interval = drawn.interval(lambda shares, place=place: shares[..., place])
        low, high = np.clip(interval[1:], 0, 1).tolist()
        ends = [min(low, 1 - unseen) if low == 1 else low, max(high, unseen) if high == 0 else high]
        found[name] = None if math.isnan(interval.value) else ends
    return found


def paired(
    scoring: Scoring, columns: Mapping[str, Seen], wished: np.ndarray, kinds: Mapping[str, Sequence[int]], seed: int = 0
) -> list[dict[str, Any]]:
    """How every two of the columns differ, on the same prompts and noise, in what the target speaks of.

    In the bias, where every prompt is wished to be even; in the distance to what is wished, where not.

    Args:
        wished: [p, K], the distributions that were wished of the prompts.
        kinds: by kind, which of the prompts are of it.
    """
    found = []
    for first, second in combinations(columns, 2):
        for kind, rows in kinds.items():
            for names in scoring.counted():
                even = scoring.is_even(names, wished)  # of all kinds, so that theirs can be compared
                if even is None:
                    continue
                targets = np.array([scoring.wished(names, row) for row in wished[rows]])
                measure, about = (metrics.bias, ()) if even else (metrics.total_variation, (targets,))
                labels = (scoring.cells_of(names, columns[column])[rows] for column in (first, second))
                rng = np.random.default_rng(seed)
                difference = pair_difference(*labels, len(scoring.cells(names)), measure, rng, *about)
                numbers = {key: _number(value) for key, value in difference._asdict().items()}
                what = {"of": " x ".join(names), "measure": measure.__name__}
                found.append({"first": first, "second": second, "kind": kind} | what | numbers)
    return found


def without_errors(
    prompts: Sequence[Mapping[str, Any]], name: str, errors: np.ndarray, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """The mean class shares of an attribute over prompts, corrected for the classifier's errors: share, low, high.

    As good as the errors are known: those of held-out pictures, and not of the generated ones.

    Args:
        prompts: what `of_prompt` gave.
        errors: [classes, classes], how many pictures of each class (row) were taken for each. Nothing is corrected
            where they do not tell the classes apart: there were none of one, none was taken for one, or two were taken
            for the same.
    """
    counts = np.array([scores[name]["counts"] for scores in prompts])
    if not counts.sum() or np.linalg.matrix_rank(errors) < len(errors):
        return {}
    found = np.stack(corrected_interval(counts, errors, np.random.default_rng(seed)), axis=1)
    return {"corrected": dict(zip(prompts[0][name]["frequencies"], found.tolist(), strict=True))}


def mean(prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means over prompts of all scores, and beside each bias its standard deviation, as the paper's tables."""
    means: dict[str, Any] = {}
    for key, first in prompts[0].items():
        values = [scores[key] for scores in prompts]
        if isinstance(first, Mapping):
            means[key] = mean(values)
            continue
        if isinstance(first, list):  # counts, which are of a prompt
            continue
        numbers = [value for value in values if value is not None]
        means[key] = float(np.mean(numbers)) if numbers else None
        if key == "bias":
            means["bias_std"] = float(np.std(numbers)) if numbers else None
    return means
