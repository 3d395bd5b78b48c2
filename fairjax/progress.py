"""Progress of long work: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from fairjax.program import legible

_SECONDS = 30
"""Between two lines."""


def named(text: str) -> str:
    """A name that others gave, as rich and a terminal take it for text alone."""
    return escape(legible(text))


def bars(console: Console, *, transient: bool = False) -> Progress:
    """A progress display in which every task has a `note`, which goes on below where the line is full.

    A transient one is shown on a terminal alone, and goes when all is done.
    """
    return Progress(
        TextColumn("{task.description:<10}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False, table_column=Column()),
        console=console, transient=transient, disable=transient and not console.is_terminal,
    )  # fmt: skip


def counting(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    """A task that counts images; returns what to tell of each batch.

    Where there is no terminal to draw bars on, a line now and then says how far it is.
    """
    name = legible(name)
    task = progress.add_task(name, total=total, note="images")
    done, last = 0, time.monotonic()

    def tell(images: int) -> None:
        nonlocal done, last
        done += images
        progress.update(task, advance=images)
        if not progress.console.is_terminal and time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            progress.console.print(f"{name} {done}/{total} images", highlight=False, markup=False)

    return tell
