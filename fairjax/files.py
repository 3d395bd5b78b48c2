"""Files that are whole or not there, and logs that may end in half a line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write a file at; left without an error, it is down on the disk, and takes the place of `path`.

    A kill on the way leaves the old file as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, none where there is no such file; a kill may have cut the last one short."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
