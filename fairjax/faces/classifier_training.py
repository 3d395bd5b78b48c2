"""Training a classifier on cut-out faces, and what it takes for what on faces held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from fairjax import draws, files
from fairjax.faces import chips, learning
from fairjax.faces import classifier as classifiers
from fairjax.faces.chips import Finder
from fairjax.faces.classifier import Classifier
from fairjax.faces.labelled import Labelled
from fairjax.faces.learning import Pixels
from fairjax.models.functional import Params, to_pixels
from fairjax.models.mobilenet import MobileNetV3Config
from fairjax.progress import bars, counting, named
from fairjax.training.fit import Fit, fit

_WORK, _SETTINGS = "work", "settings.json"
_RESTATED = 30  # batches from which the statistics of batch normalisation are taken
_MOVED = 0.05  # how far faces are moved, as a part of their side


@dataclasses.dataclass(frozen=True)
class Chips:
    """Cut-out faces, and what they show."""

    images: np.ndarray  # uint8 [n, size, size, 3]
    labels: dict[str, np.ndarray]  # attribute -> [n] class numbers, -1 where it is not known
    classes: dict[str, tuple[str, ...]]
    places: np.ndarray  # [m], which of them are faces


def begin(output: Path, settings: dict[str, str]) -> None:
    """Makes the output folder, or finds in it a run of the same settings to go on with.

    Raises:
        ValueError: one line, where it holds classifiers, or a run of other settings.
    """
    path = output / _WORK / _SETTINGS
    if (output / "classifier_eval").exists():
        raise ValueError(f"{output} holds classifiers already: choose another folder")
    if path.is_file() and (before := files.read_json(path)) != settings:
        name = next(name for name in settings if before.get(name) != settings[name])
        raise ValueError(
            f"{output} holds a run with {name} = {before.get(name)}, not {settings[name]}: choose another folder"
        )
    files.write_json(path, settings)


def faces(name: str, pictures: Labelled, find: Finder, size: int, output: Path, console: Console) -> Chips:
    """Cuts the faces out; pictures without one are left out, and their number is told.

    Raises:
        ValueError: one line, where there are none at all.
    """
    path = output / _WORK / f"{name}.npy"
    with bars(console) as progress:
        tell = counting(progress, name, len(pictures))
        images, found = chips.cut_out(pictures, find, chips.cropped(find, size), path, tell)
    console.print(f"{name}: {found.sum()} faces in {len(found)} pictures")
    if not found.any():
        raise ValueError(f"no face was found in {len(found)} pictures")
    return Chips(images, pictures.labels, pictures.classes, np.flatnonzero(found))


def varied(images: np.ndarray, places: np.ndarray) -> Pixels:
    """Faces mirrored, moved by up to a twentieth, in other light and contrast, with grain."""

    side = images.shape[1]
    far = max(1, round(_MOVED * side))

    def pixels(indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(indices)
        mirrored, (rows, columns) = rng.random(n) < 0.5, rng.integers(0, 2 * far + 1, (2, n))
        ranges = ((0.9, 1.1), (-0.08, 0.08), (0, 0.08))
        contrast, light, grain = (rng.uniform(*between, n).astype(np.float32) for between in ranges)
        drawn = rng.standard_normal((n, *images.shape[1:]), np.float32)
        for number, place in enumerate(places[indices]):  # one by one they stay in the cache
            face = images[place][:, ::-1] if mirrored[number] else images[place]
            padded = np.pad(face, ((far, far), (far, far), (0, 0)), mode="edge")
            row, column = rows[number], columns[number]
            moved = to_pixels(padded[row : row + side, column : column + side])
            drawn[number] = drawn[number] * grain[number] + moved * contrast[number] + light[number]
        return drawn

    return pixels


def train(
    name: str, output: Path, trained: Chips, held_out: Chips, config: MobileNetV3Config, plan: Fit, seed: int,
    radius: float, console: Console,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Trains a classifier, writes it to the folder `name` of `output`, and returns its confusion matrices.

    Args:
        radius: of the adversary, as `learning.classification` has it.
    """
    classifier = Classifier.make(config, trained.classes, trained.images.shape[1])
    labels = {attribute: values[trained.places] for attribute, values in trained.labels.items()}
    pixels = varied(trained.images, trained.places)
    loss, batch = learning.classification(classifier, pixels, labels, plan.batch_size, seed, radius, balanced=True)
    key = draws.key(seed)
    params = classifier.network.init(jax.random.fold_in(key, 0))
    params = fit(name, output / _WORK / name, plan, params, loss, batch, jax.random.fold_in(key, 1), console)
    params = learning.restated(classifier, params, [batch(plan.steps + extra)["images"] for extra in range(_RESTATED)])
    matrices = confusion(classifier, params, held_out)
    classifiers.save(classifier, params, output / name)
    classifiers.save_errors(classifier, matrices, output / name)
    return matrices


def confusion(classifier: Classifier, params: Params, chips: Chips, batch_size: int = 64) -> dict[str, np.ndarray]:
    """By what the faces are labelled with, how many of each class (row) are taken for each, [classes, classes]."""
    logits_of = jax.jit(classifier.logits)
    matrices = {
        name: np.zeros((len(classes),) * 2, int) for name, classes in classifier.heads.items() if name in chips.labels
    }
    for start in range(0, len(chips.places), batch_size):
        places = np.resize(chips.places[start : start + batch_size], batch_size)  # the last ones come again
        logits = logits_of(params, to_pixels(chips.images[places]))
        fresh = min(batch_size, len(chips.places) - start)
        for name in matrices:
            labels, guesses = chips.labels[name][places][:fresh], np.asarray(logits[name]).argmax(1)[:fresh]
            known = labels >= 0
            np.add.at(matrices[name], (labels[known], guesses[known]), 1)
    return matrices


def show(name: str, matrices: dict[str, np.ndarray], classes: dict[str, tuple[str, ...]], console: Console) -> None:
    """Prints the confusion matrices, in per cent of each row."""
    for attribute, matrix in matrices.items():
        table = Table(title=f"{name}: {named(attribute)}, on faces held out: what each class is taken for")
        names = list(map(named, classes[attribute]))
        for column in ("", *names, "faces"):
            table.add_column(column, justify="right")
        for label, row in zip(names, matrix, strict=True):
            table.add_row(label, *(f"{share:.0%}" for share in row / max(row.sum(), 1)), str(row.sum()))
        console.print(table)
