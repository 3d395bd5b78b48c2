"""Before and after: the same noise through the base and the finetuned model, scored, tabled and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from fairjax.adapters.bundle import Bundle
from fairjax.config import Experiment
from fairjax.evaluation import grid
from fairjax.evaluation.measuring import Seen, classify
from fairjax.faces import judges
from fairjax.faces.classifier import Classifier
from fairjax.fairness import metrics
from fairjax.fairness.attributes import Target, distribution, marginals
from fairjax.models.functional import Params
from fairjax.pipeline import Pipeline
from fairjax.prompts import Prompt

_CONFIDENT = 0.8
_SHOWN, _COLUMNS = 4, 8
"""How many prompts of each kind the picture shows, and how many images of each."""


class Measured(NamedTuple):
    images: np.ndarray  # uint8 [p, n, H, W, 3]
    seen: Seen


class Comparison:
    """Measures a model before and after, keeps both in the run folder, and tells the difference.

    A measurement that the folder holds already is not repeated.
    """

    def __init__(
        self, pipeline: Pipeline, classifier: Classifier, params: Params, target: Target, prompts: list[Prompt],
        config: Experiment, folder: Path,
    ):  # fmt: skip
        self.pipeline, self.classifier, self.params = pipeline, classifier, params
        self.target, self.prompts, self.config, self.folder = target, prompts, config, folder
        self.attributes = judges.attributes(classifier)
        self.sizes = {attribute.name: len(attribute.classes) for attribute in self.attributes}
        self.measured: dict[str, Measured] = {}

    @property
    def num_images(self) -> int:
        return len(self.prompts) * self.config.evaluation.images_per_prompt

    def measure(self, name: str, bundle: Bundle, on_batch: Callable[[int], None]) -> Measured:
        """Generates and scores, `name` being "before" or "after"; a few prompts at a time, each kept when done."""
        section, parts = self.config.evaluation, []
        together = max(1, section.batch_size // section.images_per_prompt)
        guidance = self.config.training.guidance_scale if section.guidance_scale is None else section.guidance_scale
        for first in range(0, len(self.prompts), together):
            texts = [prompt.text for prompt in self.prompts[first : first + together]]
            path = self.folder / "samples" / f"{name}-{first:04d}.npz"
            if path.is_file():
                parts.append(np.load(path)["images"])
                on_batch(parts[-1].shape[0] * parts[-1].shape[1])
                continue
            images = self.pipeline.generate(
                texts, section.images_per_prompt, bundle=bundle, seed=section.seed, num_steps=section.num_steps,
                guidance_scale=guidance, solver=section.solver or self.config.training.solver,
                batch_size=section.batch_size, first=first, on_batch=on_batch,
            )  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part.npz")
            np.savez(partial, images=images)
            partial.rename(path)
            parts.append(images)
        images = np.concatenate(parts)
        self.measured[name] = Measured(images, classify(self.classifier, self.params, images))
        return self.measured[name]

    def finish(self, console: Console, about: dict[str, Any]) -> dict[str, Any]:
        """Writes `results.json` and `before_after.png`, prints the table, returns the results."""
        section = self.config.evaluation
        results = {name: self._summary(measured.seen) for name, measured in self.measured.items()}
        results["per_prompt"] = [
            {"prompt": prompt.text, "held_out": prompt.held_out}
            | {name: self._shares(measured.seen, index) for name, measured in self.measured.items()}
            for index, prompt in enumerate(self.prompts)
        ]
        results |= about | {
            "images_per_prompt": section.images_per_prompt,
            "evaluation_seed": section.seed,
            "classifier": "classifier_eval",
            "fair_floor": {
                name: metrics.fair_floor(section.images_per_prompt, size) for name, size in self.sizes.items()
            },
        }
        (self.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        self._picture().save(self.folder / "before_after.png")
        console.print(self.table(results))
        name = self.target.attributes[0]
        console.print(
            f"{section.images_per_prompt} images a prompt, at which an exactly fair model measures about "
            f"{results['fair_floor'][name]:.2f} for {name}.\nResults, adapter and pictures are in {self.folder}",
            highlight=False,
        )
        return results

    def _summary(self, seen: Seen) -> dict[str, Any]:
        """Per kind of prompt, the means over prompts."""
        held_out = np.array([prompt.held_out for prompt in self.prompts])
        return {
            kind: self._group(seen, np.flatnonzero(which))
            for kind, which in (("trained", ~held_out), ("held_out", held_out))
        }

    def _group(self, seen: Seen, rows: np.ndarray) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        for names in self._tables():
            shares = np.array([self._frequencies(seen, row, names) for row in rows])
            biases = [metrics.bias(share) for share in shares]
            entry = {"bias": float(np.nanmean(biases)), "bias_std": float(np.nanstd(biases))}
            entry["frequencies"] = dict(zip(self._cells(names), np.nanmean(shares, axis=0).tolist(), strict=True))
            if wished := self._wished(names):
                entry["total_variation"] = float(
                    np.nanmean([metrics.total_variation(s, np.array(wished)) for s in shares])
                )
            summary[" x ".join(names)] = entry
        face = seen.has_face[rows]
        unsure = [seen.probs[name][rows].max(-1)[face] < _CONFIDENT for name in self.target.attributes]
        summary["no_face"] = float(1 - face.mean())
        summary["low_confidence"] = float(np.mean(unsure)) if face.any() else None
        if (right := self._recognised(seen)) is not None:
            summary["recognised"] = float(right[rows].mean())
        return summary

    def _tables(self) -> list[tuple[str, ...]]:
        """Every attribute, and the joint one where the target has several."""
        single = [(name,) for name in self.sizes]
        joint = self.target.attributes
        pairs = [pair for pair in combinations(joint, 2) if pair != joint]
        return [*single, *pairs, *([joint] if len(joint) > 1 else [])]

    def _cells(self, names: tuple[str, ...]) -> list[str]:
        classes = {attribute.name: attribute.classes for attribute in self.attributes}
        cells = [""]
        for name in names:
            cells = [f"{cell} {label}".strip() for cell in cells for label in classes[name]]
        return cells

    def _frequencies(self, seen: Seen, row: int, names: tuple[str, ...]) -> np.ndarray:
        face = seen.has_face[row]
        labels = [seen.probs[name][row].argmax(-1)[face] for name in names]
        return metrics.frequencies(labels, [self.sizes[name] for name in names])

    def _wished(self, names: tuple[str, ...]) -> tuple[float, ...] | None:
        joint = distribution(self.target, self.attributes)
        if names == self.target.attributes:
            return tuple(map(float, joint))
        if len(names) == 1 and names[0] in self.target.attributes:
            sizes = [self.sizes[name] for name in self.target.attributes]
            return tuple(map(float, marginals(joint, sizes)[self.target.attributes.index(names[0])]))
        return None

    def _recognised(self, seen: Seen) -> np.ndarray | None:
        """[p, n] whether the picture shows the subject; None where the classifier knows no such things."""
        things = self.classifier.heads.get(judges.RECOGNITION, ())
        if seen.recognised is None or any(prompt.subject not in things for prompt in self.prompts):
            return None
        return seen.recognised == np.array([things.index(prompt.subject) for prompt in self.prompts])[:, None]

    def _shares(self, seen: Seen, row: int) -> dict[str, Any]:
        return {
            name: dict(zip(self._cells((name,)), self._frequencies(seen, row, (name,)).round(4).tolist(), strict=True))
            for name in self.sizes
        }

    def table(self, results: dict[str, Any]) -> Table:
        """The results as a table: trained and held-out prompts, before and after."""
        table = Table(title="bias: mean difference of class frequencies, 0 is even", title_justify="left")
        table.add_column("")
        for kind in ("trained", "held out"):
            for name in self.measured:
                table.add_column(f"{kind}\n{name}", justify="right")
        kinds = [(kind, name) for kind in ("trained", "held_out") for name in self.measured]
        for names in self._tables():
            key = " x ".join(names)
            mark = " *" if set(names) <= set(self.target.attributes) else ""
            table.add_row(key + mark, *(f"{results[name][kind][key]['bias']:.2f}" for kind, name in kinds))
        table.add_section()
        for key, title in (
            ("recognised", "subject recognised"),
            ("no_face", "no face"),
            ("low_confidence", "uncertain"),
        ):
            values = [results[name][kind].get(key) for kind, name in kinds]
            if None not in values:
                table.add_row(title, *(f"{value:.1%}" for value in values))
        table.caption = "* what the finetuning is to change"
        return table

    def _picture(self):
        held_out = [index for index, prompt in enumerate(self.prompts) if prompt.held_out]
        trained = [index for index, prompt in enumerate(self.prompts) if not prompt.held_out]
        rows = [*trained[:_SHOWN], *held_out[:_SHOWN]]
        columns = min(_COLUMNS, self.config.evaluation.images_per_prompt)
        sides = []
        for name, measured in self.measured.items():
            probs = {key: value[rows, :columns] for key, value in measured.seen.probs.items()}
            sides.append(
                grid.Side(name, measured.images[rows, :columns], probs, measured.seen.has_face[rows, :columns])
            )
        titles = [self.prompts[row].text + (" (held out)" if self.prompts[row].held_out else "") for row in rows]
        return grid.marked(sides, titles, self.attributes)
