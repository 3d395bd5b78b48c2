"""Tables that the user brings, and the distributions that one of them may give to single subjects."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairjax.config import TargetSection
from fairjax.fairness.attributes import Attribute, Target, cell_names, distribution, joint_target, select

if TYPE_CHECKING:
    from datasets import Dataset

_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
"""What a file's name ends in, and which reader of `datasets` it is for."""

_SUBJECT = "subject"
"""The column of a table of distributions that says whose they are."""


def read(name: str, subset: str | None = None) -> dict[str, Dataset]:
    """The splits of a file, of a folder that has a file for each, or of a dataset of the hub; a file is all "train".

    What is read from a disk leaves nothing behind on it; what is fetched from the hub is kept where `datasets` does.

    Args:
        subset: which one, of a dataset of the hub that has several.

    Raises:
        ValueError: one line that begins with the name.
    """
    path = Path(name)
    kind = _FORMATS.get(path.suffix.lower())
    if path.is_file() and kind is None:
        raise ValueError(f"{name!r}: a file should end in {', '.join(_FORMATS)}")
    for file in [path] if path.is_file() else path.rglob("*.json*") if path.is_dir() else []:
        _check_json(file, name)
    if not path.exists() and (kind or name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(f"{name!r}: no such file or folder, nor a dataset of the hub such as 'org/name'")
    import datasets  # takes a second

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it raises
    with tempfile.TemporaryDirectory() as cache:
        here = {"cache_dir": cache, "keep_in_memory": True}
        try:
            if path.is_file():
                _check_unpacked(path)
                splits = dict(datasets.load_dataset(kind, data_files=glob.escape(name), **here))
                return _whole(splits) if kind == "csv" else splits
            if path.is_dir():
                splits = _of_folder(path.resolve(), cache)
                return _whole(splits) if any(path.rglob("*.csv")) else splits
            return dict(datasets.load_dataset(name, subset))
        except Exception as error:  # its own kinds, and those of the reader, of the hub's client and of the system
            cause = error.__cause__ or error
            empty = "nothing is in it" if isinstance(cause, StopIteration) else type(cause).__name__
            reason = str(cause).strip().splitlines() or [empty]
            raise ValueError(f"{name!r} cannot be read: {reason[0]}") from None


def _of_folder(folder: Path, cache: str) -> dict[str, Dataset]:
    """The splits of a folder, by the names of its files, and read by what most of them are.

    `datasets.load_dataset` would ask the folder's README.md besides, which can name files of elsewhere: of this disk,
    or of a network.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns
    from datasets.load import infer_module_for_data_files
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.text.text import Text

    readers = {"csv": Csv, "imagefolder": ImageFolder, "json": Json, "parquet": Parquet, "text": Text}
    ends = {kind: [end for end, other in _FORMATS.items() if other == kind] for kind in readers}
    ends["csv"] += [".tsv"]
    ends["imagefolder"] += [*ImageFolder.EXTENSIONS, *map(str.upper, ImageFolder.EXTENSIONS)]
    here = glob.escape(str(folder))
    there = DataFilesDict.from_patterns(get_data_patterns(here), here)
    for file in [Path(file) for files in there.values() for file in files]:
        if file.suffix.lower() not in ImageFolder.EXTENSIONS:
            _check_unpacked(file)
    kind, how = infer_module_for_data_files(there, str(folder))
    beside = ImageFolder.METADATA_FILENAMES if kind == "imagefolder" else None
    read = there.filter(extensions=ends[kind], file_names=beside) if kind in readers else {}
    if not any(read.values()):
        raise ValueError(f"it should hold pictures, or files that end in {', '.join(_FORMATS)}")
    builder = readers[kind](cache_dir=cache, data_files=read, base_path=str(folder), **how)
    builder.download_and_prepare()
    return dict(builder.as_dataset(in_memory=True))


def _whole(splits: dict[str, Any]) -> dict[str, Any]:
    """Refuses what a CSV's reader makes of rows that have a field more than its header, their first for no column's,
    and of a file with other marks than commas between its columns: one column."""
    for split in splits.values():
        if "__index_level_0__" in split.column_names:
            raise ValueError("its rows have more fields than its header: text with a comma in it must stand in quotes")
        first, *others = split.column_names
        if not others and (mark := next((mark for mark in ";\t" if mark in first), None)):
            raise ValueError(f"its columns are {first!r}: between them should be commas, not {mark!r}")
    return splits


def _check_json(file: Path, name: str) -> None:
    """Refuses what pyarrow 26 would not survive: lines of JSON that begin with null, where it begins to read."""
    if not file.is_file() or _FORMATS.get(file.suffix.lower()) != "json":
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.lstrip(b"\xef\xbb\xbf \t\r").startswith(b"null"):
                raise ValueError(f"{name!r} cannot be read: line {number} of {file.name} is null")


def _check_unpacked(file: Path) -> None:
    """Refuses what is packed, whatever its name ends in: `datasets` would unpack it, and a little can be very much."""
    from datasets.utils.extract import Extractor

    if packed := Extractor.infer_extractor_format(file):
        raise ValueError(f"{file.name} is packed ({packed}): unpack it first")


def target(section: TargetSection, attributes: Sequence[Attribute], subjects: Collection[str]) -> Target:
    """The target of a configuration, with the distributions that its table and its prompts give to single subjects.

    Args:
        attributes: what the classifier tells.
        subjects: all whom the table and the prompts may speak of.

    Raises:
        ValueError: one line that names the field, or the file and its row.
    """
    chosen = joint_target(section.attributes, section.distribution, section.marginals, attributes)
    for subject in section.prompts:
        if subject not in subjects:
            near = {name.casefold(): name for name in subjects}
            raise ValueError(f"target.prompts: {subject!r} is not among the subjects{_near(subject, near)}")
    table = _by_subject(section, attributes, subjects) if section.table else {}
    return dataclasses.replace(chosen, own=table | section.prompts)


def _by_subject(
    section: TargetSection, attributes: Sequence[Attribute], subjects: Collection[str]
) -> dict[str, tuple[float, ...]]:
    """Distributions over the joint cells, by subject, as the table has them."""
    where = f"target.table = {section.table!r}"
    try:
        splits = read(section.table)
    except ValueError as error:
        raise ValueError(f"target.table = {error}") from None
    rows = [row for split in splits.values() for row in split]
    groups = _groups(where, list(rows[0]), section, attributes)
    known: dict[str, list[str]] = {}  # two subjects may differ in their letters' case alone
    for subject in sorted(subjects):
        known.setdefault(subject.casefold(), []).append(subject)
    own: dict[str, tuple[float, ...]] = {}
    for number, row in enumerate(rows, 1):
        name = str(row[_SUBJECT]).strip()
        place, spelt = f"{where}, row {number}", known.get(name.casefold(), [])
        if not spelt:
            near = {folded: names[0] for folded, names in known.items()}
            raise ValueError(f"{place}: {name!r} is not among the subjects{_near(name, near)}")
        for subject in [name] if name in spelt else spelt:
            if subject in own:
                raise ValueError(f"{place}: {subject!r} has a row already")
            own[subject] = _cells(f"{place} ({subject})", row, groups, section, attributes)
    return own


def _near(name: str, known: Mapping[str, str]) -> str:
    """Who may be meant, of those by their names without regard to case."""
    near = difflib.get_close_matches(name.casefold(), known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def _groups(
    where: str, columns: Sequence[str], section: TargetSection, attributes: Sequence[Attribute]
) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The table's columns, by the attributes that they are the classes of: all of them jointly, or single ones."""
    chosen = select(section.attributes, attributes)
    cells = cell_names(chosen)
    groups = {(a.name,): a.classes for a in chosen if set(a.classes) & set(columns)}
    for column in columns:
        if len(of := [name for (name,), classes in groups.items() if column in classes]) > 1:
            raise ValueError(
                f"{where} has a column {column!r}, which is a class of {' and of '.join(of)}: "
                f"it should have {_SUBJECT}, {', '.join(cells)}"
            )
    if not groups or len(chosen) == 1:
        groups = {section.attributes: cells}
    wanted = [_SUBJECT, *(column for group in groups.values() for column in group)]
    alone = f", or the classes of {' or '.join(section.attributes)} alone" if len(chosen) > 1 else ""
    for problem, names in (
        ("an unknown column", [column for column in columns if column not in wanted]),
        ("no column", [column for column in wanted if column not in columns]),
    ):
        if names:
            raise ValueError(
                f"{where} has {problem} {names[0]!r}: it should have {_SUBJECT}, {', '.join(cells)}{alone}"
            )
    return groups


def _cells(
    place: str, row: dict[str, Any], groups: dict[tuple[str, ...], tuple[str, ...]], section: TargetSection,
    attributes: Sequence[Attribute],
) -> tuple[float, ...]:  # fmt: skip
    """A row's distribution over the joint cells; attributes that it leaves out are independent of the others."""
    shares = {}
    for names, columns in groups.items():
        shares[names] = tuple(row[column] for column in columns)
        distribution(Target(names, shares[names]), attributes, f"{place}: {' x '.join(names)}")
    if section.attributes in shares:
        return shares[section.attributes]
    alone = section.marginals | {names[0]: given for names, given in shares.items()}
    return joint_target(section.attributes, None, alone, attributes).distribution
