"""Models side by side: the same noise through the base and the finetuned ones, scored, tabled and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL.Image import Image
from rich.console import Console

from fairjax import __version__, files, parallel, schema
from fairjax.config import RESULTS, Experiment
from fairjax.evaluation import data, figures, grid, plots, preservation, printed, report, scores
from fairjax.evaluation.columns import Column, Setting, Studio
from fairjax.evaluation.measuring import Seen, classify
from fairjax.evaluation.scores import Names, Scoring, paired
from fairjax.faces.judges import RECOGNITION, Judge, Semantics, TextTower
from fairjax.fairness import metrics
from fairjax.fairness.attributes import Target, per_prompt
from fairjax.models.functional import Params, digest
from fairjax.pipeline import Pipeline
from fairjax.progress import named
from fairjax.prompts import Prompt

FIGURES = "figures"
"""What a folder of results calls that of the report's plots and pictures as PNGs."""

_SHOWN, _COLUMNS = 4, 8
"""How many prompts of each kind the picture shows, and how many images of each."""

_IN_REPORT = 16
"""How many images of each of these the report shows, spread over all that were made."""

_KINDS = {"trained": False, "held_out": True}
"""Kinds of prompts: whether they were held out of the finetuning."""


class Measured(NamedTuple):
    """What is kept of a column's images: of all what was seen, and the pictures of a few, for all may be too many."""

    seen: Seen  # of p prompts
    embedded: dict[str, np.ndarray]  # by network, [p, n, d], of length 1
    shown: dict[int, np.ndarray]  # by prompt, uint8 [n, H, W, 3]

    def part(self, rows: slice) -> Measured:
        """Of some of the prompts; the pictures stay."""
        embedded = {name: features[rows] for name, features in self.embedded.items()}
        return Measured(self.seen.part(rows), embedded, self.shown)


class Networks(NamedTuple):
    """Networks besides the judge, by name: those that embed images, and those that embed prompts in the same space.

    With the commits of those that came from the hub.
    """

    semantics: Mapping[str, tuple[Semantics, Params]] = MappingProxyType({})
    texts: Mapping[str, TextTower] = MappingProxyType({})
    revisions: Mapping[str, str] = MappingProxyType({})

    def placed(self) -> Networks:
        """With those for images on the devices; where they are there already, nothing is copied."""
        mesh = parallel.mesh()
        on_devices = {name: (part, parallel.replicate(own, mesh)) for name, (part, own) in self.semantics.items()}
        return self._replace(semantics=on_devices)


class Comparison:
    """Measures models side by side, keeps what they make in the run folder, and tells the differences.

    Args:
        prompts: what is asked for.
        errors: of the judge, by attribute: how often each class (row) is taken for each.
        networks: they measure what else changes.
        nobody: prompts that ask for nobody, in whose pictures nothing should change.
    """

    def __init__(
        self, pipeline: Pipeline, judge: Judge, params: dict[str, Params], target: Target, prompts: list[Prompt],
        config: Experiment, folder: Path, errors: Mapping[str, np.ndarray] | None = None,
        networks: Networks = Networks(), nobody: Sequence[Prompt] = (),  # noqa: B008
    ):  # fmt: skip
        self.pipeline, self.judge, self.params = pipeline, judge, parallel.replicate(params, parallel.mesh())
        self.prompts, self.config, self.folder = prompts, config, folder
        self.attributes = judge.attributes
        self.scoring = Scoring(self.attributes, target.attributes)
        asked_for = [prompt.subject for prompt in prompts]
        self.wished = per_prompt(asked_for, target, self.attributes)  # [p, K]
        self.kinds = [kind for kind, held_out in _KINDS.items() if any(p.held_out == held_out for p in prompts)]
        self.errors, self.networks, self.nobody = errors or {}, networks.placed(), nobody
        self.studio, self.setting = Studio(pipeline, config.evaluation, folder), Setting.of(config)
        self.columns: dict[str, Column] = {}
        self.measured: dict[str, Measured] = {}
        self.measured_nobody: dict[str, Measured] = {}
        self.swept: list[dict[str, Any]] = []

    def tell_at_once(self, console: Console) -> None:
        """Says how many images are made at once, where the memory of the devices decides it."""
        if not self.config.evaluation.batch_size and parallel.memory_left(parallel.mesh()) is not None:
            count = self.studio.at_once(len(self.prompts) + len(self.nobody), self.setting)
            console.print(
                f"evaluation.batch_size: {count} images at a time, to fit the devices' memory", highlight=False
            )

    @property
    def num_images(self) -> int:
        """How many images a column has."""
        return (len(self.prompts) + len(self.nobody)) * self.config.evaluation.images_per_prompt

    def rest(self) -> None:
        """Takes the networks off the devices until `measure` needs them."""
        resting = {name: (part, jax.device_get(own)) for name, (part, own) in self.networks.semantics.items()}
        self.networks = self.networks._replace(semantics=resting)

    def measure(self, column: Column, on_batch: Callable[[int], None]) -> None:
        """Generates and scores; the column of the base model comes first."""
        self.networks = self.networks.placed()
        self.columns[column.name] = column
        texts = [prompt.text for prompt in (*self.prompts, *self.nobody)]
        looked_at = self._looked_at(self.studio.images(column, texts, self.setting, on_batch), self._shown_prompts())
        self.measured[column.name] = looked_at.part(slice(len(self.prompts)))
        if self.nobody:
            self.measured_nobody[column.name] = looked_at.part(slice(len(self.prompts), None))

    def sweep(self, settings: Sequence[Setting], on_batch: Callable[[int], None]) -> None:
        """Scores the columns that were measured at other settings too."""
        texts = [prompt.text for prompt in self.prompts]
        for setting in settings:
            found = {}
            for name, column in self.columns.items():
                suffix = "-" + "-".join(map(str, setting))
                made = self.studio.images(column, texts, setting, on_batch, suffix)
                seen = Seen.concatenated([classify(self.judge, self.params, images) for images in made])
                found[name] = self._means(self._by_prompt(seen))
            self.swept.append(setting._asdict() | {"columns": found})

    def _looked_at(self, made: Iterable[np.ndarray], shown: Sequence[int]) -> Measured:
        """Looks at images as they are made; keeps those of the prompts `shown`."""
        seen, embedded, kept, place = [], {name: [] for name in self.networks.semantics}, {}, 0
        for images in made:
            seen.append(classify(self.judge, self.params, images))
            for name, network in self.networks.semantics.items():
                embedded[name].append(preservation.features(*network, images))
            kept |= {row: images[row - place] for row in shown if place <= row < place + len(images)}
            place += len(images)
        features = {name: np.concatenate(parts) for name, parts in embedded.items()}
        return Measured(Seen.concatenated(seen), features, kept)

    def finish(self, console: Console, about: dict[str, Any]) -> dict[str, Any]:
        """Writes `results.json`, `report.html` and pictures, prints the table, returns the results."""
        results = self._results(about)
        if parallel.is_first():
            self._write(results)
        self._print(results, console)
        return results

    def _results(self, about: dict[str, Any]) -> dict[str, Any]:
        """What `results.json` holds; `about` says what was measured."""
        section = self.config.evaluation
        by_prompt = {name: self._by_prompt(measured.seen) for name, measured in self.measured.items()}
        results: dict[str, Any] = {name: self._means(entries) for name, entries in by_prompt.items()}
        results["per_prompt"] = [
            {
                "prompt": prompt.text,
                "subject": prompt.subject,
                "held_out": prompt.held_out,
                "wished": self._wished([index]),
            }
            | {name: entries[index] for name, entries in by_prompt.items()}
            for index, prompt in enumerate(self.prompts)
        ]
        results["columns"] = {
            name: {"adapter_digest": column.digest, "words": column.words} for name, column in self.columns.items()
        }
        if len(self.measured) > 1:
            results["paired"] = paired(
                self.scoring, {name: m.seen for name, m in self.measured.items()}, self.wished, self._rows()
            )
            results["preservation"] = {
                name: self._preserved(name, self.measured, self.prompts, self._rows())
                for name in self.networks.semantics
            }
            if self.nobody:
                results["nobody"] = self._about_nobody()
        if self.swept:
            results["sweep"] = self.swept
        results |= about | {
            "model": self.config.model,
            "revision": self.pipeline.revision,
            "network_revisions": dict(self.networks.revisions),
            "detector": self.config.judges.detector,
            "classifiers": list(self.config.judges.evaluation),
            "weights": {"model": self.pipeline.digest, "judge": digest(self.params)}
            | {name: digest(params) for name, (_, params) in self.networks.semantics.items()}
            | {f"{name}, texts": digest(tower.params) for name, tower in self.networks.texts.items()},
            "images_per_prompt": section.images_per_prompt,
            "evaluation_seed": section.seed,
            **self.setting._asdict(),
            "targets": self._wished(range(len(self.prompts))),
            "versions": {"fairjax": __version__} | {name: metadata.version(name) for name in ("jax", "flax", "numpy")},
            "config": self.config.model_dump(mode="json"),
            "even": {
                " x ".join(names): even
                for names in self.scoring.counted()
                if (even := self.scoring.is_even(names, self.wished)) is not None
            },
            "fair_floor": {" x ".join(names): self._floor(names, by_prompt) for names in self.scoring.counted()},
        }
        return results

    def _write(self, results: dict[str, Any]) -> None:
        files.write_text(self.folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
        with files.whole(self.folder / "before_after.png") as partial:
            self._picture().save(partial, "PNG")
        self._report(results)

    def _print(self, results: dict[str, Any], console: Console) -> None:
        for table in printed.tables(results, self.kinds, list(self.measured), console.width):
            console.print(table, crop=False)
        for name, share in results.get("nobody", {}).get("faces", {}).items():
            told = named(f"prompts that ask for nobody, {name}: a face in {share:.1%}")
            console.print(told, highlight=False)
        console.print(
            f"{self.config.evaluation.images_per_prompt} images a prompt; "
            "'fair' is what an exactly fair model measures on average.\n"
            f"Results and pictures are in {self.folder}; report.html there shows all of it",
            highlight=False,
        )

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
        for kind, rows in self._rows().items():
            entries = [by_prompt[row] for row in rows]
            means[kind] = scores.mean(entries)
            for key, chance in scores.intervals(self.scoring, entries, self.wished[rows]).items():
                means[kind][key] |= chance
            for name, matrix in self.errors.items():
                if name in means[kind]:
                    means[kind][name] |= scores.without_errors(entries, name, matrix)
        return means

    def _floor(self, names: Names, by_prompt: Mapping[str, list[dict[str, Any]]]) -> float:
        """The bias that an exactly fair model measures on so many faces as there are, over prompts and models.

        Of all images where there are none.
        """
        key, num_images = " x ".join(names), self.config.evaluation.images_per_prompt
        floors = [entry[key]["fair_bias"] for entries in by_prompt.values() for entry in entries]
        found = [floor for floor in floors if floor is not None]
        return float(np.mean(found)) if found else metrics.fair_floor(num_images, len(self.scoring.cells(names)))

    def _rows(self) -> dict[str, list[int]]:
        """By kind, which of the prompts are of it."""
        return {
            kind: [row for row, prompt in enumerate(self.prompts) if prompt.held_out == _KINDS[kind]]
            for kind in self.kinds
        }

    def _preserved(
        self, name: str, measured: Mapping[str, Measured], prompts: Sequence[Prompt], kinds: Mapping[str, list[int]]
    ) -> dict[str, Any]:
        """By kind, what a network says of how the images of prompts stay."""
        tower = self.networks.texts.get(name)
        labels = {column: self.scoring.cells_of(self.scoring.targeted, m.seen) for column, m in measured.items()}
        texts = None if tower is None else preservation.text_features(tower, [prompt.text for prompt in prompts])
        return {
            kind: preservation.preserved(
                {column: m.embedded[name][rows] for column, m in measured.items()},
                {column: x[rows] for column, x in labels.items()},
                None if texts is None else texts[rows],
            )
            for kind, rows in kinds.items()
        }

    def _about_nobody(self) -> dict[str, Any]:
        """What of the pictures of nobody is otherwise: how many show a face, and how alike they are."""
        rows = {"nobody": list(range(len(self.nobody)))}
        kept = {
            name: self._preserved(name, self.measured_nobody, self.nobody, rows)["nobody"]
            for name in self.networks.semantics
        }
        faces = {column: float(measured.seen.has_face.mean()) for column, measured in self.measured_nobody.items()}
        return {"prompts": [prompt.text for prompt in self.nobody], "faces": faces, "preservation": kept}

    def _recognised(self, seen: Seen) -> np.ndarray | None:
        """[p, n] whether the picture shows the subject; None where the classifier knows no such things."""
        things = self.judge.heads.get(RECOGNITION, ())
        if seen.recognised is None or any(prompt.subject not in things for prompt in self.prompts):
            return None
        return seen.recognised == np.array([things.index(prompt.subject) for prompt in self.prompts])[:, None]

    def _wished(self, rows: Sequence[int]) -> dict[str, dict[str, float]]:
        """What is wished of the target's attributes, one by one and all jointly: the mean over some prompts."""
        found, targeted = {}, self.scoring.targeted
        for names in dict.fromkeys([*((name,) for name in targeted), targeted]):
            shares = np.mean([self.scoring.wished(names, self.wished[row]) for row in rows], axis=0)
            found[" x ".join(names)] = dict(zip(self.scoring.cells(names), map(float, shares), strict=True))
        return found

    def keep_data(self) -> None:
        """Writes the images with what was predicted of them into `data/`, as a dataset, a few prompts at a time.

        What an earlier evaluation left there goes.
        """
        written: list[Path] = []
        how = {"seed": self.config.evaluation.seed, "base_model": self.config.model} | self.setting._asdict()
        how["guidance_scale"] = float(how["guidance_scale"])
        texts = [prompt.text for prompt in self.prompts]
        for name, column in self.columns.items():
            about, place = how | {"adapter": column.digest, "words": column.words}, 0
            for images in data.by_file(self.studio.images(column, texts, self.setting, lambda images: None)):
                rows, stem = slice(place, place + len(images)), f"{column.file_name}-{place:04d}"
                seen = self.measured[name].seen.part(rows)
                written += data.write(
                    self.folder / "data", stem, name, images, seen, self.prompts[rows], self.attributes, about
                )
                place += len(images)
        data.remove_others(self.folder / "data", written)

    def _report(self, results: dict[str, Any]) -> None:
        """Writes `report.html`, and its plots and pictures as PNGs beside it."""
        sides, titles = self._sides()
        sides = [grid.by_prediction(side, self.scoring.targeted, _IN_REPORT) for side in sides]
        logs = {name: column.log for name, column in self.columns.items() if column.log}
        curves = plots.curves(logs, self.config.target.measure)
        config = schema.dump(self.config)
        report.write(self.folder / "report.html", results, self.attributes, sides, titles, config, curves)
        figures.write(self.folder / FIGURES, results, self.attributes, curves)
        with files.whole(self.folder / FIGURES / "pictures.png") as partial:
            grid.marked(sides, titles, self.attributes).save(partial, "PNG")

    def _shown_prompts(self) -> list[int]:
        held_out = [index for index, prompt in enumerate(self.prompts) if prompt.held_out]
        trained = [index for index, prompt in enumerate(self.prompts) if not prompt.held_out]
        return [*trained[:_SHOWN], *held_out[:_SHOWN]]

    def _sides(self) -> tuple[list[grid.Side], list[str]]:
        """By column, the images of the prompts that are shown, and these prompts' titles."""
        rows = self._shown_prompts()
        sides = [
            grid.Side(
                name, np.stack([images[row] for row in rows]), {key: probs[rows] for key, probs in seen.probs.items()},
                seen.has_face[rows], seen.boxes[rows],
            )
            for name, (seen, _, images) in self.measured.items()
        ]  # fmt: skip
        return sides, [self.prompts[row].text + " (held out)" * self.prompts[row].held_out for row in rows]

    def _picture(self) -> Image:
        """The first images of each column: the same noise in the same place."""
        sides, titles = self._sides()
        first = np.tile(np.arange(min(_COLUMNS, self.config.evaluation.images_per_prompt)), (len(titles), 1))
        return grid.marked([grid.taken(side, first)._replace(boxes=None) for side in sides], titles, self.attributes)
