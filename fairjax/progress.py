"""How long work shows itself."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def bars(console: Console) -> Progress:
    """A progress display in which every task has a `note`."""
    return Progress(
        TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip


def counting(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    """A task that counts images; returns what to tell of each batch."""
    task = progress.add_task(name, total=total, note="images")
    return lambda images: progress.update(task, advance=images)
