"""What the tables and plots of a report show, as values: the page and the pictures beside it draw the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.cells import cell_len, set_cell_size

from fairjax import files
from fairjax.evaluation.columns import BASE
from fairjax.fairness.attributes import Attribute

Results = Mapping[str, Any]
"""What a comparison found, as `results.json` has it."""

Range = Sequence[float] | None
"""Low and high of a 95% interval, where there is one."""

_DISTANCES = {"total_variation": "distance to what is wished", "divergence": "divergence from what is wished"}
_SETTING = {"num_steps": "{} steps", "guidance_scale": "guidance {}", "solver": "{}"}
_FAIR = "an exactly fair model"
_FAR = 0.3
"""How far below the middle of a row the last of many dots beside each other is, in rows."""
_SAME = 1e-6
"""Marks that are closer are one."""
_CURVE_POINTS = 200
_MOST_JOINT = 16


class Cell(NamedTuple):
    """A number of the table, and its interval."""

    value: float | None
    interval: Range


class Line(NamedTuple):
    """A row of the table of numbers."""

    title: str
    target: bool  # whether it is what the finetuning is to change
    fair: list[float | None]  # by kind of prompts and column, what an exactly fair model measures on as many faces
    cells: list[Cell]  # by kind of prompts and column


class Row(NamedTuple):
    """A row of dots."""

    title: str
    held_out: bool
    values: list[float]  # by column
    intervals: list[Range]
    marks: list[float | None]  # by column: what is wished, or what an exactly fair model measures on as many faces


class Dots(NamedTuple):
    """A plot of rows, a dot for each column's value."""

    title: str
    axis: str  # what the values are
    by: str  # what the rows are
    columns: list[str]
    rows: list[Row]
    mark: str  # what the rows' marks are
    share: bool  # whether the values are shares of one class


class Bar(NamedTuple):
    """How often each class is shown by one column, [classes] each."""

    column: str
    shares: list[float]
    intervals: list[Range]
    corrected: dict[str, list[float]] | None  # by class: share, low and high, less the classifier's known errors


class Bars(NamedTuple):
    """The shares of an attribute's classes, in the pictures of one kind of prompts."""

    title: str
    attribute: Attribute
    number: int  # the attribute's place, which says what its colours are
    bars: list[Bar]
    wished: list[float] | None  # [classes], the mean over these prompts


class Curve(NamedTuple):
    """What a training logged, smoothed: [n] each."""

    steps: np.ndarray
    values: np.ndarray


def kinds(results: Results) -> list[str]:
    """The kinds of prompts that were measured."""
    return list(results[BASE])


def said(name: str) -> str:
    """A name as words."""
    return name.replace("_", " ")


def of_kind(kind: str) -> str:
    """What prompts of a kind are called."""
    return f"{kind.replace('_', '-')} prompts"


def short(text: str, most: int) -> str:
    """A text that fills no more than `most` letters' width, of which Chinese characters take two."""
    return text if cell_len(text) <= most else set_cell_size(text, most - 1).rstrip() + "…"


def beside(row: Row) -> np.ndarray:
    """How far below the middle of its row each dot is, in rows: intervals must not lie on each other."""
    number = len(row.values)
    far = _FAR * (1 - 1 / number) if any(row.intervals) else 0.0
    return np.linspace(-far, far, number)


def marked(row: Row) -> list[tuple[float, float, float]]:
    """The marks of a row, each with where it begins and ends, in rows below the middle.

    One for columns that have the same; others lie as dots that are beside each other do.
    """
    ends = [-0.5, *np.linspace(-_FAR, _FAR, len(row.marks) + 1)[1:-1].tolist(), 0.5]
    found: list[tuple[float, float, float]] = []
    for mark, top, bottom in zip(row.marks, ends, ends[1:], strict=False):
        if mark is None:
            continue
        if found and found[-1][2] == top and abs(found[-1][0] - mark) < _SAME:
            mark, top, _ = found.pop()
        found.append((mark, top, bottom))
    return found


def marks_are(plot: Dots) -> str:
    """What the marks of a plot are, and in which order where models have their own."""
    return plot.mark + ", of each model from above" * any(len(marked(row)) > 1 for row in plot.rows)


def highest(plot: Dots) -> float:
    """The highest that a plot shows: of its dots, their intervals and the rows' marks."""
    ends = [ends[1] for row in plot.rows for ends in row.intervals if ends]
    marks = [mark for row in plot.rows for mark in row.marks if mark is not None]
    return max([0.1, *ends, *marks, *(value for row in plot.rows for value in row.values)])


def measure(results: Results, name: str) -> str:
    """What counts for an attribute, or several together: the bias where each prompt is to show its classes evenly."""
    return "bias" if results["even"].get(name, True) else "total_variation"


def numbers(results: Results) -> tuple[list[Line], list[Line]]:
    """The rows of the main table, and of another that has the target by other measures."""
    main, other = [], []
    for name in results["fair_floor"]:
        targeted, counts = name in results["even"], measure(results, name)
        for what in ("bias", *(_DISTANCES if targeted else ())):
            title = said(name) + (f", {_DISTANCES[what]}" if what in _DISTANCES else "")
            is_target = targeted and what == counts
            lines = main if what == "bias" or is_target else other
            lines.append(_line(results, name, what, title, is_target))
            if targeted and (what != "bias" or is_target):
                lines = main if is_target else other
                lines.append(_line(results, name, f"{what}_without_floor", f"{title}, without what chance adds", False))
    main, other = ([line for line in lines if any(c.value is not None for c in line.cells)] for lines in (main, other))
    return main, other


def _line(results: Results, name: str, what: str, title: str, target: bool) -> Line:
    entries = [results[column][kind][name] for kind in kinds(results) for column in results["columns"]]
    cells = [Cell(entry.get(what), entry.get(f"{what}_interval")) for entry in entries]
    without = what.endswith("_without_floor")
    fair = [0.0 if without else entry.get(f"fair_{what}") for entry in entries]
    return Line(title, target, fair, cells)


def _floor(scores: Mapping[str, Any], name: str, what: str) -> float | None:
    """What an exactly fair model measures on average, of the prompts that these scores are of."""
    return scores[name].get(f"fair_{what}")


def targeted(results: Results, attributes: Sequence[Attribute]) -> list[Attribute]:
    """Those that the target speaks of."""
    return [attribute for attribute in attributes if attribute.name in results["even"]]


def dumbbells(results: Results, attributes: Sequence[Attribute]) -> list[Dots]:
    """A plot by prompt for each attribute of the target."""
    return [dumbbell(results, attribute) for attribute in targeted(results, attributes)]


def sweeps(results: Results, attributes: Sequence[Attribute]) -> list[Dots]:
    """Plots by setting for each attribute of the target; none where no other setting was measured at."""
    return [plot for attribute in targeted(results, attributes) for plot in sweep(results, attribute.name)]


def dumbbell(results: Results, attribute: Attribute) -> Dots:
    """A row for each prompt: the share of an attribute's first class by each column, and the share that is wished.

    With more than two classes, what counts for the attribute instead, and what an exactly fair model measures of it.
    """
    name, columns, two = attribute.name, list(results["columns"]), len(attribute.classes) == 2
    what, first = measure(results, name), attribute.classes[0]
    rows = []
    for prompt in results["per_prompt"]:
        if two:
            values = [prompt[column][name]["frequencies"][first] for column in columns]
            fair = [prompt["wished"][name][first]] * len(columns)
        else:
            values = [prompt[column][name][what] for column in columns]
            fair = [_floor(prompt[column], name, what) for column in columns]
        if None not in values:
            rows.append(Row(prompt["prompt"], prompt["held_out"], values, [None] * len(values), fair))
    rows.sort(key=lambda row: (row.held_out, row.values[0]))
    title = f"{said(name).capitalize()}: share of {first}" if two else _title(name, what)
    return Dots(title, title, "prompt", columns, rows, "wished" if two else _FAIR, two)


def _title(name: str, what: str) -> str:
    return f"Bias in {said(name)}" if what == "bias" else f"{said(name).capitalize()}: {_DISTANCES[what]}"


def sweep(results: Results, name: str) -> list[Dots]:
    """For each kind of prompts, a row for each setting that was measured at: what counts for an attribute."""
    columns, what = list(results["columns"]), measure(results, name)
    if not results.get("sweep"):
        return []
    usual = {key: results[key] for key in _SETTING}
    settings = [usual | {"columns": {column: results[column] for column in columns}}, *results["sweep"]]
    found = []
    for kind in kinds(results):
        rows = []
        for number, setting in enumerate(settings):
            changed = [key for key in usual if setting[key] != usual[key]] if number else usual
            title = ", ".join(_SETTING[key].format(setting[key]) for key in changed) or "the same"
            scores = [setting["columns"][column][kind] for column in columns]
            values, intervals = ([s[name].get(key) for s in scores] for key in (what, f"{what}_interval"))
            if None not in values:
                rows.append(Row(title, False, values, intervals, [_floor(each, name, what) for each in scores]))
        title = f"{_title(name, what)} at other settings, {of_kind(kind)}"
        found.append(Dots(title, _title(name, what), "setting", columns, rows, _FAIR, False))
    return found


def together(results: Results) -> list[Attribute]:
    """The joint classes of the target's attributes, where it has several and they are not too many to be shown."""
    jointly = [name for name in results["even"] if " x " in name]
    if not jointly:
        return []
    name = max(jointly, key=lambda name: name.count(" x "))  # of all of them, rather than of two
    classes = tuple(results[BASE][kinds(results)[0]][name]["frequencies"])
    return [Attribute(name, classes)] if len(classes) <= _MOST_JOINT else []


def frequencies(results: Results, attributes: Sequence[Attribute]) -> list[Bars]:
    """For each attribute, and for those of the target jointly, and each kind of prompts: the mean shares of classes by
    each column."""
    found = []
    for number, attribute in enumerate([*attributes, *together(results)]):
        for kind in kinds(results):
            bars = []
            for column in results["columns"]:
                entry = results[column][kind][attribute.name]
                shares = [entry["frequencies"][label] or 0.0 for label in attribute.classes]
                intervals = entry.get("frequencies_interval", {})
                ranges = [intervals.get(label) for label in attribute.classes]
                bars.append(Bar(column, shares, ranges, entry.get("corrected")))
            title = f"{said(attribute.name)}, {of_kind(kind)}"
            found.append(Bars(title, attribute, number, bars, _wished(results, attribute, kind)))
    return found


def _wished(results: Results, attribute: Attribute, kind: str) -> list[float] | None:
    prompts = [prompt for prompt in results["per_prompt"] if prompt["held_out"] == (kind == "held_out")]
    wished = [prompt["wished"][attribute.name] for prompt in prompts if attribute.name in prompt["wished"]]
    return [float(np.mean([each[label] for each in wished])) for label in attribute.classes] if wished else None


def curves(logs: Mapping[str, Path], measure: str = "bias") -> dict[str, dict[str, Curve]]:
    """What trainings logged over their steps, by what and by whose `log.jsonl`, each smoothed over a twentieth.

    The loss, and what says how near to the target they are: the bias, or the distance from what is wished.
    """
    found: dict[str, dict[str, Curve]] = {}
    for column, log in logs.items():
        rows = files.json_lines(log, step=int)
        for name in ["loss", *(name for name in rows[0] if name.startswith(f"{measure}/"))] if rows else []:
            logged = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
            if len(logged) < 2:
                continue
            steps, values = np.array(logged, float).T
            window = max(1, len(values) // 20)
            smooth = np.convolve(values, np.ones(window) / window, mode="valid")
            picked = np.linspace(0, len(smooth) - 1, min(_CURVE_POINTS, len(smooth))).astype(int)
            found.setdefault(name, {})[column] = Curve(steps[window - 1 :][picked], smooth[picked])
    return found
