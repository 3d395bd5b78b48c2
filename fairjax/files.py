"""Files that are whole or not there, and logs that may be damaged."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from safetensors import SafetensorError

from fairjax.schema_errors import shown

SUMS = "sha256.json"
"""In each checkpoint's folder: the SHA-256 of every file in it, by path. It is written last."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write a file at; left without an error, it is down on the disk, and takes the place of `path`.

    A kill on the way leaves the old file as it was. What lies at that place goes first: it may be somebody's link to a
    file of elsewhere, or a pipe, which would never take anything.

    Raises:
        OSError: the disk would not take it; it names the file, whoever was writing.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if str(error.filename or partial) == str(partial):
            error.filename = str(path)
        raise
    except SafetensorError as error:  # which has the system's code in its text alone
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # of a full disk it is what fills it
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object; raises ValueError, one line that begins with where it is from."""
    try:
        fields = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where} should hold a JSON object, and holds {shown(fields)}")
    return fields


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented, with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(fields, indent=2) + "\n")


def json_lines(path: Path, **fields: type | UnionType) -> list[dict[str, Any]]:
    """The lines of a log that are objects with these fields and finite numbers, none where there is no such file.

    Others are passed over: a kill may have cut one short, and a person may have edited them.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError, OverflowError):
            row = json.loads(line)
            if isinstance(row, dict) and all(isinstance(row.get(name, ...), kind) for name, kind in fields.items()):
                if all(math.isfinite(value) for value in row.values() if isinstance(value, int | float)):
                    rows.append(row)
    return rows


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a log anew, whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
