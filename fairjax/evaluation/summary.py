"""Several evaluations in one table: `python -m fairjax.evaluation.summary runs/*/evaluation-*` prints Markdown.

Results of one configuration under several seeds become one row: the mean, and the range where there are several.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairjax import files
from fairjax.config import BEST, RESULTS
from fairjax.evaluation.columns import AFTER, BASE
from fairjax.program import Parser, UserError, command, legible

_KINDS = (("trained", "trained"), ("held_out", "held out"))
_NONE = "-"

EVEN = "even"
"""Where results say of what each prompt is to show every class alike."""


def table(groups: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Markdown: a block of rows for each group, a column for each kind of prompts that any has, before and after.

    Args:
        groups: by name, what was measured by each of its seeds: `before` and `after` of a `results.json`, and its
            `even`: of a target that is not, the distance to it is told in place of the bias.
    """
    known = [results[BASE] for members in groups.values() for results in members]
    kinds = [(kind, title) for kind, title in _KINDS if any(kind in before for before in known)]
    columns = [(kind, when) for kind, _ in kinds for when in (BASE, AFTER)]
    titles = [f"{title}, {when}" for _, title in kinds for when in (BASE, AFTER)]
    lines = ["| | | " + " | ".join(titles) + " |", "| --- " * (len(columns) + 2) + "|"]
    for group, members in groups.items():
        first, *others = [next(iter(results[BASE].values())) for results in members]
        shared = [key for key in first if all(key in other for other in others)]
        entries = [key for key in shared if isinstance(first[key], dict)]

        def cells(key: str, inner: str | None, members=members) -> list[list[float]]:
            found = [[results[when].get(kind, {}).get(key) for results in members] for kind, when in columns]
            return [[value[inner] if inner and value else value for value in values] for values in found]

        uneven = [name for name in entries if any(not results.get(EVEN, {}).get(name, True) for results in members)]
        rows = [(f"bias: {name}", cells(name, "bias"), "{:.2f}") for name in entries if name not in uneven]
        rows += [(f"distance to the target: {name}", cells(name, "total_variation"), "{:.2f}") for name in uneven]
        for key, title in (("recognised", "subject recognised"), ("low_confidence", "uncertain")):
            if first.get(key) is not None:
                rows.append((title, cells(key, None), "{:.1%}"))
        moves = [[_moved(results, kind, when, entries) for results in members] for kind, when in columns]
        rows.append(("largest move of a class share that is no target", moves, "{:.2f}"))
        for number, (title, values, style) in enumerate(rows):
            label = f"{group} ({len(members)} seed{'s' * (len(members) > 1)})" if number == 0 else ""
            lines.append(f"| {label} | {title} | " + " | ".join(_cell(each, style) for each in values) + " |")
    return "\n".join(lines)


def _moved(results: dict[str, Any], kind: str, when: str, names: Sequence[str]) -> float | None:
    """By how much the mean share of a class of any attribute without a target has changed at most."""
    if kind not in results[BASE]:
        return None
    before, after = results[BASE][kind], results[when][kind]
    free = [name for name in names if "total_variation" not in before[name] and " x " not in name]
    pairs = [(before[name]["frequencies"], after[name]["frequencies"]) for name in free]
    shares = [(old[label], new[label]) for old, new in pairs for label in old]
    return max((abs(old - new) for old, new in shares if None not in (old, new)), default=0.0)


def _cell(values: Sequence[float | None], style: str) -> str:
    """The mean and the range of what was measured; without a face, say, nothing was."""
    found = [value for value in values if value is not None]
    if not found:
        return _NONE
    middle = style.format(sum(found) / len(found))
    if len(found) == 1:
        return middle
    return f"{middle} ({style.format(min(found))} to {style.format(max(found))})"


def _measured(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was measured of each adapter, or of other words, in a folder: what it is called, and before and after."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} holds no {RESULTS}: name a run folder or an evaluation of eval.py")
    try:
        results = files.read_json(path)
    except ValueError as error:
        raise UserError(str(error)) from None
    run = folder.resolve().name
    if run.startswith("evaluation-"):
        run = folder.resolve().parent.name + f" ({BEST})" * run.endswith(f"-{BEST}")
    try:
        for column in results["columns"]:
            if column != BASE:
                called = run if column == AFTER else column.removeprefix(f"{AFTER}: ")
                measured = {BASE: results[BASE], AFTER: results[column], EVEN: results.get(EVEN, {})}
                table({called: [measured]})  # what cannot be shown is told before anything is
                yield called, measured
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
        raise UserError(f"{path} is not what an evaluation measures") from None


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m fairjax.evaluation.summary", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of eval.py's results")
    parser.add_argument(
        "--name", help="of a single group; without it, adapters are grouped by name, trailing numbers left out"
    )
    options = parser.parse_args(argv)
    groups: dict[str, list[dict[str, Any]]] = {}
    for folder in options.folders:
        for called, measured in _measured(folder):
            groups.setdefault(options.name or called.rstrip("-0123456789") or called, []).append(measured)
    if not groups:
        raise UserError(f"{options.folders[0]}: only the base model was measured, there is nothing to compare")
    print("\n".join(map(legible, table(groups).split("\n"))))


if __name__ == "__main__":
    sys.exit(main())
