"""Before and after: the same noise through the base and the finetuned model, scored, tabled and drawn."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from fairjax import __version__, files, parallel, schema
from fairjax.adapters.bundle import Bundle
from fairjax.config import Experiment
from fairjax.evaluation import data, grid, preservation, report, scores
from fairjax.evaluation.measuring import Seen, classify
from fairjax.evaluation.scores import Names, Scoring
from fairjax.faces.judges import RECOGNITION, Judge, Semantics
from fairjax.fairness import metrics
from fairjax.fairness.attributes import Target, per_prompt
from fairjax.models.functional import Params
from fairjax.pipeline import Pipeline
from fairjax.prompts import Prompt

_SHOWN, _COLUMNS = 4, 8
"""How many prompts of each kind the picture shows, and how many images of each."""

_IN_REPORT = 16
"""How many images of each of these the report shows, spread over all that were made."""

_KINDS = {"trained": False, "held_out": True}
"""Kinds of prompts: whether they were held out of the finetuning."""


class Measured(NamedTuple):
    images: np.ndarray  # uint8 [p, n, H, W, 3]
    seen: Seen


class Comparison:
    """Measures a model before and after, keeps both in the run folder, and tells the difference.

    Images that the folder holds already are not made again, if the same adapter and settings made them.
    """

    def __init__(
        self, pipeline: Pipeline, judge: Judge, params: dict[str, Params], target: Target, prompts: list[Prompt],
        config: Experiment, folder: Path, errors: Mapping[str, np.ndarray] | None = None,
        semantics: Mapping[str, tuple[Semantics, Params]] | None = None,
    ):  # fmt: skip
        self.pipeline, self.judge, self.params = pipeline, judge, params
        self.prompts, self.config, self.folder = prompts, config, folder
        self.attributes = judge.attributes
        self.scoring = Scoring(self.attributes, target.attributes)
        asked_for = [prompt.subject for prompt in prompts]
        self.wished = per_prompt(asked_for, target, self.attributes)  # [p, K]
        self.kinds = [kind for kind, held_out in _KINDS.items() if any(p.held_out == held_out for p in prompts)]
        self.measured: dict[str, Measured] = {}
        self.errors = errors or {}  # of the judge, by attribute: how often each class (row) is taken for each
        self.semantics = semantics or {}  # by name, networks that say what else of an image changes
        self.digests: dict[str, str] = {}  # of what was measured: the adapter, told from others

    @property
    def num_images(self) -> int:
        return len(self.prompts) * self.config.evaluation.images_per_prompt

    def measure(self, name: str, bundle: Bundle, on_batch: Callable[[int], None]) -> Measured:
        """Generates and scores, `name` being "before" or "after"; a few prompts at a time, each kept when done."""
        section, parts = self.config.evaluation, []
        self.digests[name] = _digest(bundle)
        together = max(1, section.batch_size // section.images_per_prompt)
        made_by = {
            "model": self.config.model, "adapter": self.digests[name], "seed": section.seed,
            "num_steps": section.num_steps, "guidance_scale": self._guidance_scale, "solver": self._solver,
            "images_per_prompt": section.images_per_prompt,
        }  # fmt: skip
        for first in range(0, len(self.prompts), together):
            texts = [prompt.text for prompt in self.prompts[first : first + together]]
            path = self.folder / "samples" / f"{name}-{first:04d}.npz"
            label = json.dumps(made_by | {"first": first, "prompts": texts})
            images = _kept(path, label)
            if images is None:
                images = self.pipeline.generate(
                    texts, section.images_per_prompt, bundle=bundle, seed=section.seed, num_steps=section.num_steps,
                    guidance_scale=self._guidance_scale, solver=self._solver, batch_size=section.batch_size,
                    first=first, on_batch=on_batch,
                )  # fmt: skip
                if parallel.is_first():
                    _keep(path, label, images)
            else:
                on_batch(images.shape[0] * images.shape[1])
            parts.append(images)
        images = np.concatenate(parts)
        self.measured[name] = Measured(images, classify(self.judge, self.params, images))
        return self.measured[name]

    @property
    def _guidance_scale(self) -> float:
        section = self.config.evaluation
        return self.config.training.guidance_scale if section.guidance_scale is None else section.guidance_scale

    @property
    def _solver(self) -> str:
        return self.config.evaluation.solver or self.config.training.solver

    def finish(self, console: Console, about: dict[str, Any]) -> dict[str, Any]:
        """Writes `results.json` and `before_after.png`, prints the table, returns the results."""
        section = self.config.evaluation
        by_prompt = {name: self._by_prompt(measured.seen) for name, measured in self.measured.items()}
        results: dict[str, Any] = {name: self._means(entries) for name, entries in by_prompt.items()}
        results["per_prompt"] = [
            {"prompt": prompt.text, "held_out": prompt.held_out}
            | {name: entries[index] for name, entries in by_prompt.items()}
            for index, prompt in enumerate(self.prompts)
        ]
        if self.semantics and len(self.measured) > 1:
            results["preservation"] = {name: self._preserved(*network) for name, network in self.semantics.items()}
        results |= about | {
            "model": self.config.model,
            "revision": self.pipeline.revision,
            "detector": self.config.judges.detector,
            "classifiers": list(self.config.judges.evaluation),
            "images_per_prompt": section.images_per_prompt,
            "evaluation_seed": section.seed,
            "num_steps": section.num_steps,
            "guidance_scale": self._guidance_scale,
            "solver": self._solver,
            "adapter_digests": self.digests,
            "targets": self._targets(),
            "versions": {"fairjax": __version__} | {name: metadata.version(name) for name in ("jax", "flax", "numpy")},
            "fair_floor": {
                " x ".join(names): metrics.fair_floor(section.images_per_prompt, len(self.scoring.cells(names)))
                for names in self.scoring.counted()
            },
        }
        if parallel.is_first():
            files.write_text(self.folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
            self._picture().save(self.folder / "before_after.png")
            self._report(results)
        console.print(self.table(results))
        console.print(
            f"{section.images_per_prompt} images a prompt; 'fair' is what an exactly fair model measures on average.\n"
            f"Results, adapter and pictures are in {self.folder}; report.html there shows all of it",
            highlight=False,
        )
        return results

    def _by_prompt(self, seen: Seen) -> list[dict[str, Any]]:
        right = self._recognised(seen)
        return [
            self.scoring.of_prompt(
                {name: probs[row] for name, probs in seen.probs.items()}, seen.has_face[row], self.wished[row],
                None if right is None else right[row],
            )
            for row in range(len(self.prompts))
        ]  # fmt: skip

    def _means(self, by_prompt: list[dict[str, Any]]) -> dict[str, Any]:
        """Per kind of prompt, the means over prompts, and their intervals."""
        means = {}
        for kind in self.kinds:
            rows = [row for row, prompt in enumerate(self.prompts) if prompt.held_out == _KINDS[kind]]
            entries = [by_prompt[row] for row in rows]
            means[kind] = scores.mean(entries)
            num_images = self.config.evaluation.images_per_prompt
            for key, interval in scores.intervals(self.scoring, entries, self.wished[rows], num_images).items():
                means[kind][key] |= interval
            for name, matrix in self.errors.items():
                if name in means[kind]:
                    means[kind][name] |= scores.without_errors(entries, name, matrix)
        return means

    def _preserved(self, part: Semantics, params: Params) -> dict[str, Any]:
        """Per kind of prompt, what a network says of how images stay."""
        embedded = {name: preservation.features(part, params, m.images) for name, m in self.measured.items()}
        labels = {name: self._cells(measured.seen) for name, measured in self.measured.items()}
        found = {}
        for kind in self.kinds:
            rows = [row for row, prompt in enumerate(self.prompts) if prompt.held_out == _KINDS[kind]]
            own = {name: cells[rows] for name, cells in labels.items()}
            found[kind] = preservation.preserved(embedded["before"][rows], embedded["after"][rows], own)
        return found

    def _cells(self, seen: Seen) -> np.ndarray:
        """[p, n] the joint class of the target's attributes that each image shows; -1 without a face."""
        labels = [seen.probs[name].argmax(-1) for name in self.scoring.targeted]
        joint = np.ravel_multi_index(labels, self.scoring.sizes(self.scoring.targeted))
        return np.where(seen.has_face, joint, -1)

    def _recognised(self, seen: Seen) -> np.ndarray | None:
        """[p, n] whether the picture shows the subject; None where the classifier knows no such things."""
        things = self.judge.heads.get(RECOGNITION, ())
        if seen.recognised is None or any(prompt.subject not in things for prompt in self.prompts):
            return None
        return seen.recognised == np.array([things.index(prompt.subject) for prompt in self.prompts])[:, None]

    def _even(self, names: Names) -> bool | None:
        """Whether every prompt is to show these evenly; None where they are not in the target."""
        wished = [self.scoring.wished(names, row) for row in self.wished]
        return None if wished[0] is None else all(np.allclose(row, row.mean()) for row in wished)

    def table(self, results: dict[str, Any]) -> Table:
        """The results as a table: trained and held-out prompts, before and after."""
        table = Table(title="bias: mean difference of class frequencies, 0 is even", title_justify="left")
        table.add_column("")
        table.add_column("\nfair", justify="right", style="dim")
        for kind in self.kinds:
            for name in self.measured:
                table.add_column(f"{kind.replace('_', ' ')}\n{name}", justify="right")
        columns = [results[name][kind] for kind in self.kinds for name in self.measured]
        keys = {" x ".join(names): self._even(names) for names in self.scoring.counted()}
        for key, even in keys.items():
            values = (_shown(column[key]["bias"], column[key].get("bias_interval")) for column in columns)
            table.add_row(key + " *" * (even is True), _shown(results["fair_floor"][key]), *values)
        if any(even is False for even in keys.values()):
            table.add_section()
        for key in (key for key, even in keys.items() if even is False):
            values = (
                _shown(column[key]["total_variation"], column[key].get("total_variation_interval"))
                for column in columns
            )
            fair = columns[0][key]["fair_total_variation"]
            table.add_row(f"{key}: distance to the target *", _shown(fair), *values)
        table.add_section()
        for key, title in (
            ("recognised", "subject recognised"),
            ("no_face", "no face"),
            ("low_confidence", "uncertain"),
        ):
            values = [column.get(key) for column in columns]
            if None not in values:
                table.add_row(title, "", *(f"{value:.1%}" for value in values))
        for name, found in results.get("preservation", {}).items():
            alike = (part for kind in self.kinds for part in ("", f"{found[kind]['similarity']:.3f}"))
            table.add_row(f"like the one before ({name})", "1", *alike)
            varied = (_shown(found[kind]["diversity"][when], digits=3) for kind in self.kinds for when in self.measured)
            table.add_row(f"varied within a class ({name})", "", *varied)
        table.caption = "* what the finetuning is to change; below each value its 95% interval"
        return table

    def _targets(self) -> dict[str, dict[str, float]]:
        """What is wished of the target's attributes, one by one: the mean over prompts."""
        return {
            attribute.name: dict(zip(attribute.classes, map(float, shares.mean(0)), strict=True))
            for attribute in self.attributes
            if attribute.name in self.scoring.targeted
            for shares in [np.array([self.scoring.wished((attribute.name,), row) for row in self.wished])]
        }

    def keep_data(self) -> None:
        """Writes the images with what was predicted of them into `data/`, as a dataset."""
        section = self.config.evaluation
        how = {"seed": section.seed, "num_steps": section.num_steps, "guidance_scale": float(self._guidance_scale)}
        how |= {"solver": self._solver, "base_model": self.config.model}
        for name, (images, seen) in self.measured.items():
            about = how | {"adapter": self.digests[name]}
            data.write(self.folder / "data", name, images, seen, self.prompts, self.attributes, about)

    def _report(self, results: dict[str, Any]) -> None:
        """Writes `report.html`."""
        sides = []
        for row in self._shown_prompts():
            pair = []
            for name, (images, seen) in self.measured.items():
                probs = {key: value[row] for key, value in seen.probs.items()}
                order = np.argsort(-probs[self.scoring.targeted[0]][:, 0] * seen.has_face[row], kind="stable")
                shown = [int(i) for i in np.linspace(0, len(order) - 1, min(_IN_REPORT, len(order)))]
                pictures = [
                    report.picture(
                        images[row, i], {key: p[i] for key, p in probs.items()}, bool(seen.has_face[row, i]),
                        seen.boxes[row, i], self.attributes,
                    )
                    for i in order[shown]
                ]  # fmt: skip
                pair.append(report.Side(name, pictures))
            prompt = self.prompts[row]
            sides.append((prompt.text + (" (held out)" if prompt.held_out else ""), pair))
        log = next((p / "log.jsonl" for p in (self.folder, self.folder.parent) if (p / "log.jsonl").is_file()), None)
        command, config = ["python", *sys.argv], schema.dump(self.config)
        report.write(self.folder / "report.html", results, self.attributes, sides, command, config, log)

    def _shown_prompts(self) -> list[int]:
        held_out = [index for index, prompt in enumerate(self.prompts) if prompt.held_out]
        trained = [index for index, prompt in enumerate(self.prompts) if not prompt.held_out]
        return [*trained[:_SHOWN], *held_out[:_SHOWN]]

    def _picture(self):
        rows = self._shown_prompts()
        columns = min(_COLUMNS, self.config.evaluation.images_per_prompt)
        sides = []
        for name, measured in self.measured.items():
            probs = {key: value[rows, :columns] for key, value in measured.seen.probs.items()}
            sides.append(
                grid.Side(name, measured.images[rows, :columns], probs, measured.seen.has_face[rows, :columns])
            )
        titles = [self.prompts[row].text + (" (held out)" if self.prompts[row].held_out else "") for row in rows]
        return grid.marked(sides, titles, self.attributes)


def _shown(value: float | None, interval: list[float] | None = None, digits: int = 2) -> str:
    """A number, and below it its interval."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f"\n[dim]{max(interval[0], 0):.2f}–{interval[1]:.2f}[/dim]" if interval else "")


def _digest(bundle: Bundle) -> str:
    """Tells adapters apart."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(bundle):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _kept(path: Path, label: str) -> np.ndarray | None:
    """The images in a file, if it is there and bears this label."""
    if not path.is_file():
        return None
    with np.load(path) as file:
        return file["images"] if str(file.get("made_by")) == label else None


def _keep(path: Path, label: str, images: np.ndarray) -> None:
    """Writes images under a label; a file of this name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part.npz")
    np.savez(partial, images=images, made_by=np.str_(label))
    partial.rename(path)
