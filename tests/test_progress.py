"""How far long work is, where nobody sees bars."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from fairjax import progress


def test_a_long_note_hides_neither_how_far_it_is_nor_how_long_it_takes():
    """Of three attributes and all jointly, in 80 columns."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    note = "loss 1.222  " + "  ".join(f"distance/{name} 0.21" for name in ("gender", "skin_tone", "age", "all of them"))
    with progress.bars(console) as bars:
        bars.add_task("finetune", total=350, completed=120, note=note)
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", console.file.getvalue())
    assert "finetune" in shown and "120/350" in shown and "0:00:00" in shown
    assert all(word in shown for word in note.split())


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
