"""How far long work is, where nobody sees bars."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from fairjax import progress


@pytest.mark.parametrize(
    ("terminal", "lines"), [(False, ["before 160/320 images", "before 320/320 images"]), (True, [])]
)
def test_what_is_no_terminal_gets_a_line_now_and_then(terminal, lines, monkeypatch):
    """Of batches that take 20 s each, after every other one."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with progress.bars(console) as bars:
        tell = progress.counting(bars, "before", 320)
        for _ in range(4):
            clock.now += 20
            tell(80)
    assert [line for line in console.file.getvalue().splitlines() if line.endswith("320 images")] == lines
