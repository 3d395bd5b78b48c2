"""A classifier of what pictures show: one network, one head for each thing that it tells apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fairjax import files
from fairjax.convert import folders
from fairjax.models.configs import read_config, typed
from fairjax.models.functional import Network, Params, functional
from fairjax.models.mobilenet import MobileNetV3, MobileNetV3Config

_CLASS = "MobileNetV3"

ERRORS = "held_out.json"
"""What a classifier's folder says of pictures that it has not learned from."""


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """`logits(params, images)` by head; `params` are apart, so that a jitted step does not hold them as constants.

    Read twice, it is the same: what was compiled with one is run with the other.
    """

    network: Network
    config: MobileNetV3Config
    heads: dict[str, tuple[str, ...]]
    """Name -> its classes, in the order of the logits."""
    image_size: int
    """The side of the square images that it has learned on, in pixels."""

    @classmethod
    def make(
        cls, config: MobileNetV3Config, heads: dict[str, tuple[str, ...]], image_size: int, where: str = "Classifier"
    ) -> Classifier:
        """Raises ValueError, which begins with `where`, if the heads' classes are not as many as the logits."""
        total = sum(map(len, heads.values()))
        if total != config.num_classes:
            raise ValueError(
                f"{where}: the heads have {total} classes; they must be num_classes = {config.num_classes}"
            )
        return cls(functional(lambda rngs: MobileNetV3(config, rngs=rngs)), config, heads, image_size)

    def _told(self) -> tuple[Any, ...]:
        """What it computes goes by; the order of the heads is part of it."""
        return self.config, tuple(self.heads.items()), self.image_size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Classifier) and self._told() == other._told()

    def __hash__(self) -> int:
        return hash(self._told())

    def parts(self) -> dict[str, slice]:
        """Which of the logits belong to which head."""
        ends = np.cumsum([len(classes) for classes in self.heads.values()]).tolist()
        pairs = zip(self.heads.items(), ends, strict=True)
        return {name: slice(end - len(classes), end) for (name, classes), end in pairs}

    def logits(self, params: Params, images: jax.Array) -> dict[str, jax.Array]:
        """Images [n, h, w, 3] in [-1, 1] -> logits [n, classes] by head."""
        logits = self.network.apply(params, images)
        return {name: logits[:, part] for name, part in self.parts().items()}


def save(classifier: Classifier, params: Params, folder: Path, dtype: type = np.float32) -> None:
    """Writes `config.json` and `model.safetensors`."""
    fields = {"_class_name": _CLASS} | dataclasses.asdict(classifier.config)
    fields |= {"heads": classifier.heads, "image_size": classifier.image_size}
    files.write_json(folder / "config.json", fields)
    folders.save(params, folder, "model", dtype)


def load(folder: Path) -> tuple[Classifier, Params]:
    """Reads what `save` wrote; raises ValueError or FileNotFoundError with one line naming what is wrong."""
    fields = files.read_json(folder / "config.json")
    if fields.get("_class_name") != _CLASS:
        raise ValueError(f"{folder}/config.json: _class_name = {fields.get('_class_name')!r} must be {_CLASS!r}")
    where = f"{folder}/config.json"
    config = read_config(MobileNetV3Config, fields, {}, where)
    heads = typed(dict[str, tuple[str, ...]], fields.get("heads"), "heads", where)
    image_size = typed(int, fields.get("image_size"), "image_size", where)
    classifier = Classifier.make(config, heads, image_size, where)
    return classifier, folders.load(classifier.network, folder, "model")


def save_errors(classifier: Classifier, matrices: dict[str, np.ndarray], folder: Path) -> None:
    """Writes beside the weights how many held-out pictures of each class (row) are taken for each (column)."""
    entries = {
        name: {
            "classes": list(classifier.heads[name]),
            "rows_are_labels": matrix.tolist(),
            "recall": recall(matrix).tolist(),
        }
        for name, matrix in matrices.items()
    }
    files.write_json(folder / ERRORS, entries)


def load_errors(folder: Path, classifier: Classifier) -> dict[str, np.ndarray]:
    """What `save_errors` wrote, by head: int [classes, classes]; nothing where nothing is known.

    Raises:
        ValueError: one line, where it is of other classes than the classifier's.
    """
    if not (folder / ERRORS).is_file():
        return {}
    matrices = {}
    for name, entry in files.read_json(folder / ERRORS).items():
        where, entry = f"{folder / ERRORS}: {name}", entry if isinstance(entry, dict) else {}
        rows = typed(tuple[tuple[int, ...], ...], entry.get("rows_are_labels"), "rows_are_labels", where)
        classes = classifier.heads.get(name)
        if classes is None or list(classes) != entry.get("classes") or {len(rows), *map(len, rows)} != {len(classes)}:
            raise ValueError(f"{where} is not of the classifier's classes")
        matrix = np.array(rows)
        matrices[name] = matrix
    return matrices


def recall(matrix: np.ndarray) -> np.ndarray:
    """The share of each class that is taken for what it is, [classes]; 0 where none is there."""
    return np.diag(matrix) / np.maximum(matrix.sum(1), 1)
