"""An evaluation's images as a dataset, with what was predicted of them: `datasets.load_dataset(FOLDER)` reads it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from fairjax import files
from fairjax.evaluation.measuring import Seen
from fairjax.fairness.attributes import Attribute
from fairjax.prompts import Prompt

_SHARD = 512
"""Images in a file."""

_NAMED = re.compile(r"[A-Za-z0-9_-]+-\d{4,}-\d{5}\.parquet")
"""Files of the dataset: a model, its first prompt's place, and which file it is of these prompts."""


def by_file(made: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Images [some, n, H, W, 3] of the next prompts, of as many together as fill a file at least."""
    waiting: list[np.ndarray] = []
    for images in made:
        waiting.append(images)
        if sum(part.shape[0] * part.shape[1] for part in waiting) >= _SHARD:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def write(
    folder: Path, stem: str, name: str, images: np.ndarray, seen: Seen, prompts: Sequence[Prompt],
    attributes: Sequence[Attribute], about: dict[str, Any],
) -> list[Path]:  # fmt: skip
    """Writes `{stem}-00000.parquet` and so on, a row for each image; returns these files.

    Args:
        name: of the model that made them.
        images: uint8 [p, n, H, W, 3].
        about: columns that are the same in every row: seed, adapter, solver and the like.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"image": datasets.Image(), "prompt": datasets.Value("string"), "subject": datasets.Value("string")}
    columns |= {"held_out": datasets.Value("bool"), "number": datasets.Value("int32")}
    kinds = {str: "string", float: "float64", int: "int64"}
    columns |= {key: datasets.Value(kinds[type(value)]) for key, value in ({"model": name} | about).items()}
    columns |= {"has_face": datasets.Value("bool"), "box": datasets.Sequence(datasets.Value("float32"), 4)}
    for attribute in attributes:
        columns[attribute.name] = datasets.ClassLabel(names=list(attribute.classes))
        columns[f"{attribute.name}_probs"] = datasets.Sequence(datasets.Value("float32"), len(attribute.classes))
    features = datasets.Features(columns)
    places = [(row, number) for row in range(images.shape[0]) for number in range(images.shape[1])]
    datasets.disable_progress_bars()
    written = []
    for shard, start in enumerate(range(0, len(places), _SHARD)):
        rows = [
            _row(images[p, n], prompts[p], n, seen, (p, n), attributes) | about | {"model": name}
            for p, n in places[start : start + _SHARD]
        ]
        table = datasets.Dataset.from_list(rows, features=features)
        written.append(folder / f"{stem}-{shard:05d}.parquet")
        with files.whole(written[-1]) as partial:
            table.to_parquet(str(partial))
    return written


def remove_others(folder: Path, written: Sequence[Path]) -> None:
    """Removes files of the names that `write` gives but those that were written: `load_dataset` reads all there are."""
    for path in folder.iterdir():
        if _NAMED.fullmatch(path.name) and path not in written:
            path.unlink()


def _row(image, prompt, number, seen, place, attributes) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    row = {
        "image": {"bytes": buffer.getvalue(), "path": None}, "prompt": prompt.text, "subject": prompt.subject,
        "held_out": prompt.held_out, "number": number, "has_face": bool(seen.has_face[place]),
        "box": seen.boxes[place].astype(np.float32).tolist(),
    }  # fmt: skip
    for attribute in attributes:
        probs = seen.probs[attribute.name][place]
        row |= {attribute.name: int(probs.argmax()), f"{attribute.name}_probs": probs.astype(np.float32).tolist()}
    return row
