"""The tables of an evaluation that a terminal shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from fairjax.progress import named

_LEFT, _COLUMN = 40, 19
"""Width in characters: of the labels, the column `fair` and the base's together; of each other model's column."""

_LEAST, _INTERVAL = 30, 12
"""The least width of the labels and the column `fair` together, and of a column with intervals."""


def tables(results: Mapping[str, Any], kinds: Sequence[str], models: Sequence[str], width: int) -> Iterator[Table]:
    """The results as tables: one for two models, where it fits; else, for each kind of prompts, as many as fit.

    What does not fit even so is wider than the terminal, rather than without its last digits.

    Args:
        results: as `results.json` has them.
        kinds: of prompts, "trained" and "held_out".
        models: the columns, the base model's first.
        width: of the terminal, in characters.
    """
    base, *others = models
    if len(others) < 2 and _LEAST + _INTERVAL * len(kinds) * len(models) <= width:
        yield _table(results, kinds, models)
        return
    beside = max(1, (width - _LEFT) // _COLUMN)
    for kind in kinds:
        for start in range(0, len(others), beside):
            table = _table(results, [kind], [base, *others[start : start + beside]])
            least = _LEAST + _INTERVAL * (len(table.columns) - 2)
            table.width = least if least > width else None
            yield table


def _table(results: Mapping[str, Any], kinds: Sequence[str], models: Sequence[str]) -> Table:
    """A column for each kind and each model."""
    table = Table(title="bias: mean difference of class frequencies, 0 is even", title_justify="left")
    networks = results.get("preservation", {})
    table.add_column("", min_width=max((len(f"({name})") for name in networks), default=0))
    table.add_column("\nfair", justify="right", style="dim")
    for kind in kinds:
        for name in models:
            table.add_column(f"{kind.replace('_', ' ')}\n{named(name)}", justify="right")
    columns = [results[name][kind] for kind in kinds for name in models]
    keys = {key: results["even"].get(key) for key in results["fair_floor"]}
    for key, even in keys.items():
        values = (_shown(column[key]["bias"], column[key].get("bias_interval")) for column in columns)
        table.add_row(named(key) + " *" * (even is True), _shown(results["fair_floor"][key]), *values)
    if any(even is False for even in keys.values()):
        table.add_section()
    for key in (key for key, even in keys.items() if even is False):
        values = (
            _shown(column[key]["total_variation"], column[key].get("total_variation_interval")) for column in columns
        )
        fair = columns[0][key]["fair_total_variation"]
        table.add_row(f"{named(key)}: distance to the target *", _shown(fair), *values)
    table.add_section()
    for key, title in (
        ("recognised", "subject recognised"),
        ("no_face", "no face"),
        ("low_confidence", "uncertain"),
    ):
        values = [column.get(key) for column in columns]
        if None not in values:
            table.add_row(title, "", *(f"{value:.1%}" for value in values))
    for name, found in networks.items():
        for key, title in (
            ("similarity", "like the one before"),
            ("diversity", "varied within a class"),
            ("alignment", "like what is asked for"),
        ):
            values = [found[kind].get(key, {}).get(column) for kind in kinds for column in models]
            if any(value is not None for value in values):
                cells = ("" if value is None else f"{value:.3f}" for value in values)
                table.add_row(f"{title} ({named(name)})", "", *cells)
    table.caption = "* what the finetuning is to change; below each value its 95% interval"
    return table


def _shown(value: float | None, interval: list[float] | None = None) -> str:
    """A number, and below it its interval."""
    if value is None:
        return "-"
    return f"{value:.2f}" + (f"\n[dim]{max(interval[0], 0):.2f}–{interval[1]:.2f}[/dim]" if interval else "")
