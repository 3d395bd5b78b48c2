"""Several evaluations in one table: `python -m fairjax.evaluation.summary runs/*/evaluation-*` prints Markdown.

Results of one configuration under several seeds become one row: the mean, and the range where there are several.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairjax.schema import UserError, command

_KINDS = (("trained", "trained"), ("held_out", "held out"))


def table(groups: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Markdown: a block of rows for each group of `results.json` contents, a column for each kind and moment."""
    columns = [(kind, when) for kind, _ in _KINDS for when in ("before", "after")]
    titles = [f"{title}, {when}" for _, title in _KINDS for when in ("before", "after")]
    lines = ["| | | " + " | ".join(titles) + " |", "| --- " * (len(columns) + 2) + "|"]
    for group, results in groups.items():
        entries = [name for name, value in results[0]["before"]["trained"].items() if isinstance(value, dict)]
        rows = [(f"bias: {name}", [[r[when][kind][name]["bias"] for r in results] for kind, when in columns], "{:.2f}")
                for name in entries]  # fmt: skip
        for name, title in (("recognised", "subject recognised"), ("low_confidence", "uncertain")):
            if results[0]["before"]["trained"].get(name) is not None:
                rows.append((title, [[r[when][kind][name] for r in results] for kind, when in columns], "{:.1%}"))
        moves = [[_moved(r, kind, when, entries) for r in results] for kind, when in columns]
        rows.append(("largest move of a class share that is no target", moves, "{:.2f}"))
        for number, (title, cells, style) in enumerate(rows):
            first = f"{group} ({len(results)} seed{'s' * (len(results) > 1)})" if number == 0 else ""
            lines.append(f"| {first} | {title} | " + " | ".join(_cell(values, style) for values in cells) + " |")
    return "\n".join(lines)


def _moved(results: dict[str, Any], kind: str, when: str, names: Sequence[str]) -> float:
    """By how much the mean share of a class of any attribute without a target has changed at most."""
    before, after = results["before"][kind], results[when][kind]
    free = [name for name in names if "total_variation" not in before[name]]
    pairs = [(before[name]["frequencies"], after[name]["frequencies"]) for name in free if " x " not in name]
    return max((abs(old[label] - new[label]) for old, new in pairs for label in old), default=0.0)


def _cell(values: Sequence[float], style: str) -> str:
    middle = style.format(sum(values) / len(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({style.format(min(values))} to {style.format(max(values))})"


@command
def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m fairjax.evaluation.summary", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a results.json, or those above them")
    parser.add_argument(
        "--name", help="of a single group; without it, runs are grouped by name, trailing numbers left out"
    )
    options = parser.parse_args(argv)
    groups: dict[str, list[dict[str, Any]]] = {}
    for folder in options.folders:
        path = folder / "results.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no results.json: name a run folder or an evaluation of eval.py")
        run = folder.parent.name if folder.name.startswith("evaluation-") else folder.name
        groups.setdefault(options.name or run.rstrip("-0123456789"), []).append(json.loads(path.read_text()))
    print(table(groups))


if __name__ == "__main__":
    sys.exit(main())
