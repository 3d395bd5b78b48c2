"""Looking at a model while it is trained: how far it is from its target, and whether what should stay collapses."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax import files, parallel
from fairjax.adapters.bundle import Bundle
from fairjax.config import VALIDATION
from fairjax.evaluation import preservation
from fairjax.evaluation.measuring import Seen, classify
from fairjax.evaluation.scores import Scoring
from fairjax.fairness import metrics
from fairjax.fairness.attributes import per_prompt
from fairjax.training.finetuning import Finetuning

_SEED = 1_000_000_007
"""Of the noise, beside that of the run: apart from the training's, and from what evaluations are usually given."""


_BOUNDED = {
    "faces": "show a face, as a share of the frozen model's",
    "similarity": "is how like the frozen model's its images are",
    "diversity": "is how varied its images are, as a share of the frozen model's",
}
"""What is warned of where it is small, and what it is."""

_BLIND = "no image shows a face, nor one of the frozen model's: nothing is learned (judges.detector, judges.box)"


class Looked(NamedTuple):
    """What was seen of the images that an adapter makes."""

    seen: Seen
    embedded: list[np.ndarray]  # by network of the image semantics, [p, n, d]


class Validation:
    """Measures adapters on prompts and noise of its own, and remembers which was the best.

    By the judges that the finetuning listens to: those that measure it in the end have no part in it. The best is the
    one nearest to the target, among those with nothing to be warned of.

    Args:
        folder: the run's; the lines of an earlier part of it count.
        start: how many steps the run goes on from; lines of later ones are dropped.
        on_look: told, on the first host, of a step, its scalars and its adapter.
        on_batch: told how many images a batch had.
    """

    def __init__(
        self, finetuning: Finetuning, folder: Path, start: int,
        on_look: Callable[[int, dict[str, float], Bundle], None] = lambda step, scalars, bundle: None,
        on_batch: Callable[[int], None] = lambda images: None,
    ):  # fmt: skip
        self.finetuning, self.section = finetuning, finetuning.config.validation
        self.on_look, self.on_batch = on_look, on_batch
        self.prompts = finetuning.subjects.validating(self.section.subjects)
        self.scoring = Scoring(finetuning.attributes, finetuning.target.attributes)
        self.wished = per_prompt([p.subject for p in self.prompts], finetuning.target, finetuning.attributes)
        self._how = self.section.model_dump(mode="json", exclude={"every"})
        self._path = folder / VALIDATION
        rows = files.json_lines(self._path, step=int, distance=int | float | None, warnings=list)
        self.rows = [row for row in rows if row["step"] <= start]

    @property
    def best(self) -> int | None:
        """The step of the best so far, None for none; of the looks that were taken, and warned of, as they are now."""
        sound = [row for row in self._like() if row["distance"] is not None and not row["warnings"]]
        return min(sound, key=lambda row: (row["distance"], row["step"]))["step"] if sound else None

    def _like(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("how", self._how) == self._how]

    def due(self, step: int) -> bool:
        """Whether this is one of the steps to look at, and has not been yet."""
        every, last = self.section.every, step == self.finetuning.config.training.steps
        asked = every is not None and step > 0 and (step % every == 0 or last)
        return asked and all(row["step"] != step for row in self._like())

    def __call__(self, step: int, bundle: Bundle) -> None:
        """Looks, writes it down, and warns on standard error of what has collapsed. On every host alike."""
        scalars = self._measured(bundle)
        warnings = self._warnings(scalars)
        numbers = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self.rows.append({"step": step, **numbers, "warnings": warnings, "how": self._how})
        if parallel.is_first():
            for warning in warnings:
                print(f"warning: step {step}: {warning}", file=sys.stderr, flush=True)
            try:  # what a full disk does not take is no reason to end a run
                self.on_look(step, {f"validation/{name}": value for name, value in scalars.items()}, bundle)
                files.write_json_lines(self._path, self.rows)  # last: a look that is there is not taken again
            except OSError as error:
                print(f"warning: the look at step {step} could not be kept: {error}", file=sys.stderr, flush=True)

    @functools.cached_property
    def _base(self) -> Looked:
        return self._look({})

    def _look(self, bundle: Bundle) -> Looked:
        f, section = self.finetuning, self.section
        images = f.pipeline.generate(
            [prompt.text for prompt in self.prompts], section.images_per_prompt, bundle=bundle,
            seed=(_SEED + f.config.seed) % 2**32, num_steps=section.num_steps,
            guidance_scale=f.config.training.guidance_scale, solver=f.config.training.solver,
            batch_size=f.config.evaluation.batch_size, on_batch=self.on_batch,
        )  # fmt: skip
        judges, placed = f.judges, f.place().judges
        networks = zip(judges.semantics, placed["semantics"], strict=True)
        embedded = [preservation.features(part, params, images) for part, params in networks]
        return Looked(classify(judges.judge, placed["judge"], images), embedded)

    def _measured(self, bundle: Bundle) -> dict[str, float]:
        """distance: total variation from what is wished, jointly, the mean over prompts; the others as the section's
        bounds have them. NaN where nothing can be said."""
        base, now = self._base, self._look(bundle)
        names = self.scoring.targeted
        cells = [self.scoring.cells_of(names, looked.seen) for looked in (base, now)]
        distances = []
        for own, wished in zip(cells[1], self.wished, strict=True):
            if (own >= 0).any():
                counts = np.bincount(own[own >= 0], minlength=len(wished))
                distances.append(metrics.total_variation(counts / counts.sum(), wished))
        pairs = list(zip(base.embedded, now.embedded, strict=True))
        similar = [float(np.sum(a * b, axis=-1).mean()) for a, b in pairs]
        varied = [[preservation.diversity(x, own) for x, own in zip(pair, cells, strict=True)] for pair in pairs]
        ratios = [after / before for before, after in varied if before and after is not None]
        faces = [looked.seen.has_face.mean() for looked in (base, now)]
        return {
            "distance": _mean(distances),
            "faces": float(faces[1] / faces[0]) if faces[0] else math.nan,
            "similarity": _mean(similar),
            "diversity": _mean(ratios),
        }

    def _warnings(self, scalars: Mapping[str, float]) -> list[str]:
        bounds = {name: getattr(self.section, f"min_{name}") for name in _BOUNDED}
        blind = math.isnan(scalars["faces"]) and math.isnan(scalars["distance"])  # of either model
        return blind * [_BLIND] + [
            f"{scalars[name]:.2f} {_BOUNDED[name]}: below validation.min_{name} = {bound}"
            for name, bound in bounds.items()
            if scalars[name] < bound  # of NaN, where nothing can be said, it is False
        ]


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
