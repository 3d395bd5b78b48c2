"""Pictures of faces with labels: image folders and datasets, whose labels become classes of attributes.

An image folder is what `datasets` calls so: pictures, and a `metadata.csv` beside them whose column `file_name` names
each, or else a folder for each class. FairFace's columns are known; for others, a mapping says what its values mean.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from fairjax import schema, tables
from fairjax.faces import photos
from fairjax.faces.judges import PRESENCE, RECOGNITION
from fairjax.program import UserError

Classes = Mapping[str, Mapping[str, Sequence[str]]]
"""Attribute -> class -> the values that mean it."""

FAIRFACE: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {"female": ("Female",), "male": ("Male",)},
    "race": {
        "WMELH": ("White", "Middle Eastern", "Latino_Hispanic"),
        "Black": ("Black",),
        "Indian": ("Indian",),
        "Asian": ("East Asian", "Southeast Asian"),
    },
    "age": {
        "young": ("0-2", "3-9", "10-19", "20-29", "30-39"),
        "old": ("40-49", "50-59", "60-69", "more than 70"),
    },
}
"""FairFace's labels (Karkkainen and Joo, 2021) in the paper's classes, in the order of the released classifiers. Where
young ends is our choice; a mapping can make another."""

_LABEL = "label"  # of an image folder whose folders are classes
_HELD_OUT = ("validation", "test")
_SHARE = 0.1
"""How much is held out of a dataset that holds nothing out itself."""

_SCANNED = 1_000
"""How many rows of a table are looked at together."""

_MOST_SEEN = 5
"""How many of a column's values an error lists."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Pictures, read when they are asked for, and what is known of them."""

    table: datasets.Dataset
    column: str  # of the pictures
    labels: dict[str, np.ndarray]  # attribute -> [n] class numbers, -1 where it is not known
    classes: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.table)

    @functools.cached_property
    def _stored(self) -> datasets.Dataset:
        return _unopened(self.table, self.column)

    def picture(self, number: int) -> Any:
        """As a `PIL.Image`."""
        stored = self._stored[number][self.column]
        return photos.opened(Path(stored["path"]) if stored["bytes"] is None else io.BytesIO(stored["bytes"]))

    def name(self, number: int) -> str:
        """The file of a picture, or its number where it lies in none."""
        return self._stored[number][self.column]["path"] or f"picture {number}"

    def digest(self) -> str:
        """SHA-256 of the pictures as they are stored, in their order."""
        found = hashlib.sha256()
        for row in self._stored:
            stored = row[self.column]
            here = stored["bytes"] is None and Path(stored["path"]).is_file()
            known = Path(stored["path"]).read_bytes() if here else stored["bytes"] or stored["path"].encode()
            found.update(hashlib.sha256(known).digest())
        return found.hexdigest()


def _unopened(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """The pictures' bytes, or the paths where they are; `datasets` would open them, even what Ghostscript runs."""
    return table.select_columns(column).cast_column(column, datasets.Image(decode=False))


def told(*parts: Labelled) -> str:
    """What is known of the pictures, attributes, classes and the label of each: the start of its SHA-256."""
    found = hashlib.sha256()
    for part in parts:
        known = [(name, part.classes[name], labels.tolist()) for name, labels in part.labels.items()]
        found.update(repr(known).encode())
    return found.hexdigest()[:12]


def read(name: str, subset: str | None = None, mapping: Classes | None = None) -> tuple[Labelled, Labelled]:
    """The pictures to train on and those held out of it, of a folder or of a dataset on the hub.

    What is held out is the split "validation" or "test"; where there is none, a tenth, drawn.

    Args:
        name: an image folder, or the name of a dataset on the hub.
        subset: which one, of a dataset that has several.
        mapping: what values of which columns mean; by default FairFace's columns, or the folder of each picture.

    Raises:
        FileNotFoundError, ValueError: one line.
    """
    splits = tables.read(name, subset)
    _check_all_there(name, splits)
    held_out = next((splits[split] for split in _HELD_OUT if split in splits), None)
    trained = _trained(name, splits)
    asked, mapping = mapping, mapping or _known(trained)
    if not mapping:
        columns = ", ".join(trained.features)
        raise ValueError(f"{name} has no labels that are known; its columns are {columns}: map them by --labels")
    if alone := next((attribute for attribute, classes in mapping.items() if len(classes) < 2), None):
        raise ValueError(f"{name} has a single class of {alone}, {next(iter(mapping[alone]))!r}: two are needed")
    if taken := next((name for name in (PRESENCE, RECOGNITION) if name in mapping), None):
        raise ValueError(
            f"{name}: no attribute can be called {taken!r}, which is what classifiers call whether a picture shows a "
            "face, or what it shows besides: give the column another name"
        )
    if held_out is None:
        if len(trained) < 2:
            raise ValueError(f"{name} has {len(trained)} pictures: some to train on and some to hold out are needed")
        trained, held_out = _apart(trained, _labelled(name, trained, mapping).labels)
    parts = tuple(_labelled(name, table, mapping) for table in (trained, held_out))
    for attribute, classes in asked.items() if asked else ():
        for number, (label, values) in enumerate(classes.items()):
            if not (parts[0].labels[attribute] == number).any():
                seen = ", ".join(map(repr, sorted(set(_values(trained, attribute)))[:_MOST_SEEN]))
                raise ValueError(
                    f"{name}: no picture to train on is of {attribute}'s class {label!r}: "
                    f"{', '.join(map(repr, values))} is none of its values ({seen}); "
                    "None, NA and null are blank in a CSV"
                )
    return parts


def _apart(table: datasets.Dataset, labels: Mapping[str, np.ndarray]) -> tuple[datasets.Dataset, datasets.Dataset]:
    """A tenth of the pictures of each class, of the first attribute, apart; one at least of each that has several."""
    first, drawn = next(iter(labels.values())), np.random.default_rng(0).permutation(len(table))
    held = np.zeros(len(table), bool)
    for number in np.unique(first):
        own = drawn[first[drawn] == number]
        held[own[: max(1, round(_SHARE * len(own)))] if len(own) > 1 else own[:0]] = True
    if not held.any():
        held[drawn[0]] = True
    return tuple(table.select(np.flatnonzero(rows), keep_in_memory=True) for rows in (~held, held))


def read_together(
    name: str, subset: str | None = None, mapping: Classes | None = None, limit: int | None = None
) -> Labelled:
    """The pictures to train on alone, of which labels need not be known; at most `limit` of them, drawn.

    Raises:
        FileNotFoundError, ValueError: one line.
    """
    splits = tables.read(name, subset)
    _check_all_there(name, splits)
    table = _trained(name, splits)
    if limit is not None and limit < len(table):
        table = table.shuffle(seed=0, keep_in_memory=True).select(range(limit), keep_in_memory=True)
    return _labelled(name, table, mapping or _known(table))


def read_mapping(path: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """A mapping from a YAML file, `attribute: {class: [value, ...], ...}`.

    Raises:
        FileNotFoundError, ValueError: one line naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        content = schema.read_yaml(path)
    except UserError as error:
        raise ValueError(str(error)) from None
    example = "it should say, say, gender: {female: [Female], male: [Male]}"
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} names no attribute: {example}")
    mapping = {}
    for attribute, classes in content.items():
        if not isinstance(classes, dict) or len(classes) < 2:
            raise ValueError(f"{path}: {attribute} has not two classes or more: {example}")
        values = {
            str(name): tuple(map(_text, value if isinstance(value, list) else [value]))
            for name, value in classes.items()
        }
        everything = [value for several in values.values() for value in several]
        if twice := [value for value in everything if everything.count(value) > 1]:
            raise ValueError(f"{path}: {attribute} has {twice[0]!r} in more than one place")
        mapping[str(attribute)] = values
    return mapping


def _trained(name: str, splits: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    if "train" not in splits:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: one of them should be train")
    return splits["train"]


def _check_all_there(name: str, splits: Mapping[str, datasets.Dataset]) -> None:
    """Refuses an image folder without a table of which `datasets` leaves pictures out.

    Where the name of one has a word such as "train" or "test" in it, it reads such ones alone, and no folder that is a
    link.
    """
    found = [Path(folder, file) for folder, _, files in os.walk(name, followlinks=True) for file in files]
    shown = [file for file in found if not any(part[0] == "." for part in file.relative_to(name).parts)]
    there = sum(file.suffix.lower() in ImageFolder.EXTENSIONS for file in shown)
    read = sum(map(len, splits.values()))
    if read < there and not any(file.stem == "metadata" for file in shown):
        raise ValueError(
            f"{name} has {there} pictures, of which {read} would be read: where words such as train, test or eval are "
            "in the names of some, only those are, and no folders that are links; name them otherwise, or list them in "
            "a metadata.csv"
        )


def _pictures(name: str, table: datasets.Dataset) -> str:
    columns = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(f"{name} has no pictures; its columns are {', '.join(table.features)}")
    (column, *_) = columns
    stored = _unopened(table, column).with_format("arrow")
    if table.info.builder_name != "imagefolder" and any(
        chunk.field("bytes").null_count for batch in stored.iter(_SCANNED) for chunk in batch[column].chunks
    ):
        raise ValueError(f"{name}: some of its pictures are only paths, to files that are not read: it must hold them")
    return column


def _values(table: datasets.Dataset, column: str) -> list[str]:
    """What the rows have in a column, as text."""
    kind, values = table.features[column], table[column]
    if isinstance(kind, datasets.ClassLabel):
        return [kind.int2str(value) if value is not None and value >= 0 else "" for value in values]
    return list(map(_text, values))


def _text(value: Any) -> str:
    """What is left blank is empty."""
    return "" if value is None else str(value)


def _known(table: datasets.Dataset) -> Classes:
    """What the columns mean whose meaning is known; empty where there are none."""
    fairface = {attribute: classes for attribute, classes in FAIRFACE.items() if attribute in table.features}
    if fairface or _LABEL not in table.features:
        return fairface
    values = sorted(set(_values(table, _LABEL)) - {""})  # which is what is not known
    return {_LABEL: {value: (value,) for value in values}} if values else {}


def _labelled(name: str, table: datasets.Dataset, mapping: Classes) -> Labelled:
    labels = {}
    for attribute, classes in mapping.items():
        if attribute not in table.features:
            raise ValueError(f"{name} has no column {attribute!r}; its columns are {', '.join(table.features)}")
        numbers = {value: number for number, values in enumerate(classes.values()) for value in values}
        values = _values(table, attribute)
        labels[attribute] = np.array([numbers.get(value, -1) for value in values], np.int32)
        if not (labels[attribute] >= 0).any():
            seen = ", ".join(map(repr, sorted(set(values))[:_MOST_SEEN]))
            raise ValueError(f"{name}: none of {attribute}'s values ({seen}) is one of {', '.join(numbers)}: map them")
    classes = {attribute: tuple(classes) for attribute, classes in mapping.items()}
    return Labelled(table, _pictures(name, table), labels, classes)
