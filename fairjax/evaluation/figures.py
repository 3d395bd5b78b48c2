"""The plots of a report as PNGs, each for itself, as a paper wants them."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len

from fairjax import files
from fairjax.evaluation import plots
from fairjax.evaluation.columns import BASE
from fairjax.evaluation.grid import marks
from fairjax.evaluation.plots import Bars, Curve, Dots, Results
from fairjax.fairness.attributes import Attribute

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI, _TALLEST = 200, 2**16 - 1
"""Dots per inch, and the most of them that a picture may be high."""

_NAMES = ("by-prompt-*.png", "by-setting-*.png", "classes.png", "training.png")
"""What the plots are called."""

_SHAPES = "oosD^vP*X"
"""Of the dots of columns, so that they are told apart without colours."""

_INK, _SOFT, _FAINT = "#1f2328", "#57606a", "#8c959f"
_LONGEST, _LONGEST_CLASS, _LINE = 44, 24, 76
"""Of names and of classes, and of a line as wide as the figure, in characters."""
_STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": _FAINT, "xtick.color": _INK, "ytick.color": _INK,
    "legend.frameon": False, "legend.fontsize": 8,
    "text.parse_math": False,  # a prompt may hold dollars
}  # fmt: skip


def write(
    folder: Path, results: Results, attributes: Sequence[Attribute], curves: Mapping[str, Mapping[str, Curve]]
) -> None:
    """Draws into `folder`: by prompt and by setting what counts for each attribute of the target, and for all of them
    the classes; and the curves of trainings, as `plots.curves` gives them. Those of an earlier evaluation go.
    """  # fmt: skip
    import matplotlib

    folder.mkdir(exist_ok=True)
    for path in [path for pattern in _NAMES for path in folder.glob(pattern)]:
        path.unlink()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # prompts may be in any script; fonts are not
        for attribute in plots.targeted(results, attributes):
            name = re.sub(r"\W+", "-", attribute.name)
            save(by_prompt(plots.dumbbell(results, attribute)), folder / f"by-prompt-{name}.png")
            if swept := plots.sweep(results, attribute.name):
                save(by_setting(swept, plots.kinds(results)), folder / f"by-setting-{name}.png")
        save(classes(plots.frequencies(results, attributes), len(plots.kinds(results))), folder / "classes.png")
        if curves:
            save(training(curves, list(results["columns"])), folder / "training.png")


def save(figure: Figure, path: Path) -> None:
    with files.whole(path) as partial:
        figure.savefig(partial, format="png", dpi=min(_DPI, _TALLEST / figure.get_figheight()))


def _figure(height: float, rows: int = 1, columns: int = 1, **how: Any) -> tuple[Figure, np.ndarray]:
    """As wide as the text of a paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, height), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05)
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def by_prompt(plot: Dots) -> Figure:
    figure, ((axes,),) = _figure(1.1 + 0.2 * len(plot.rows))
    _rows(axes, plot)
    held_out = [y for y, row in enumerate(plot.rows) if row.held_out]
    if held_out:
        axes.axhspan(held_out[0] - 0.5, held_out[-1] + 0.5, color="#eef1f4", zorder=0, label="held out")
    axes.set_xlabel(plot.axis)
    axes.set_xlim(0, 1 if plot.share else 1.05 * plots.highest(plot))
    if plot.share:
        axes.xaxis.set_major_formatter("{x:.0%}")
    _legend(figure, axes)
    return figure


def by_setting(found: Sequence[Dots], kinds: Sequence[str]) -> Figure:
    each = 0.14 * len(found[0].columns) + 0.12
    figure, (panels,) = _figure(1.2 + each * len(found[0].rows), 1, len(found), sharex=True)
    for axes, plot, kind in zip(panels, found, kinds, strict=True):
        _rows(axes, plot)
        axes.set_title(plots.of_kind(kind))
        axes.tick_params(labelleft=axes is panels[0])
    panels[0].set_xlim(0, 1.05 * max(map(plots.highest, found)))
    figure.supxlabel(found[0].axis, fontsize="medium")
    _legend(figure, panels[0])
    return figure


def _rows(axes: Axes, plot: Dots) -> None:
    """Rows of dots, from above."""
    for y, row in enumerate(plot.rows):
        for number, (mark, top, bottom) in enumerate(plots.marked(row)):
            label = plots.marks_are(plot) if y == number == 0 else None
            axes.plot([mark] * 2, [y + top, y + bottom], "--", color=_INK, linewidth=1, zorder=1, label=label)
        if not any(row.intervals):
            axes.hlines(y, min(row.values), max(row.values), color=_FAINT, linewidth=1.5, zorder=2)
    for number, (column, how) in enumerate(zip(plot.columns, _looks(plot.columns), strict=True)):
        values = [row.values[number] for row in plot.rows]
        below = [y + plots.beside(row)[number] for y, row in enumerate(plot.rows)]
        error = _error(values, [row.intervals[number] for row in plot.rows])
        axes.errorbar(
            values, below, xerr=error, fmt=how["marker"], markersize=6.5, markerfacecolor=how["face"],
            markeredgecolor=how["edge"], markeredgewidth=how["width"], ecolor=how["line"], elinewidth=1,
            label=_short(column), zorder=3, clip_on=False,
        )  # fmt: skip
    axes.set_yticks(range(len(plot.rows)), [_short(row.title) for row in plot.rows])
    axes.set_ylim(max(len(plot.rows), 1) - 0.5, -0.5)  # of none, too
    axes.tick_params(left=False)
    axes.grid(axis="x", alpha=0.3)


def _error(values: Sequence[float], intervals: Sequence[plots.Range]) -> np.ndarray | None:
    """[2, n] how far intervals reach below values and above them, to 0 at most; nothing where there are none."""
    if not any(intervals):
        return None
    ends = [ends or (value, value) for value, ends in zip(values, intervals, strict=True)]
    error = [(value - max(low, 0.0), high - value) for value, (low, high) in zip(values, ends, strict=True)]
    return np.maximum(np.array(error).T, 0)


def _looks(columns: Sequence[str]) -> list[dict[str, Any]]:
    """How columns are drawn: the base's dots and bars are hollow, the others' told apart where they meet."""
    found = []
    for number, (column, colour) in enumerate(zip(columns, marks(columns), strict=True)):
        edge, width, line = (_SOFT, 1.2, _SOFT) if column == BASE else ("#ffffff", 0.4, colour)
        shape = _SHAPES[number % len(_SHAPES)]
        found.append({"marker": shape, "face": colour, "edge": edge, "width": width, "line": line})
    return found


def classes(found: Sequence[Bars], kinds: int) -> Figure:
    """A row of panels for each attribute, in it bars for each class and column, and the share that is wished."""
    names = [[plots.short(name, _LONGEST_CLASS) for name in plot.attribute.classes] for plot in found]
    tilts = [_tilt(own, kinds) for own in names]
    below = sum(0.06 * max(map(cell_len, own)) for own, tilt in zip(names, tilts, strict=True) if tilt)
    figure, panels = _figure(0.6 + (1.7 * len(found) + below) / kinds, len(found) // kinds, kinds, sharey=True)
    for axes, plot, own, tilt in zip(panels.flat, found, names, tilts, strict=True):
        columns, places = [bar.column for bar in plot.bars], np.arange(len(plot.attribute.classes))
        width = 0.8 / len(columns)
        for number, (bar, how) in enumerate(zip(plot.bars, _looks(columns), strict=True)):
            x, pale = places + (number + 0.5) * width - 0.4, 0.45  # so that lines are seen on any bar
            axes.bar(x, bar.shares, width, color=(how["face"], pale), edgecolor=how["line"], label=_short(bar.column))
            axes.errorbar(x, bar.shares, _error(bar.shares, bar.intervals), fmt="none", ecolor=_INK, elinewidth=1)
        for place, wished in zip(places, plot.wished or (), strict=False):
            label = "wished" if place == 0 else None
            axes.plot([place - 0.45, place + 0.45], [wished] * 2, "--", color=_INK, linewidth=1, label=label)
        axes.set(title=_lines(plot.title, kinds), ylim=(0, 1))
        axes.set_xticks(places, own)
        if tilt:
            axes.tick_params(axis="x", rotation=tilt)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.yaxis.set_major_formatter("{x:.0%}")
    _legend(figure, next((axes for axes, plot in zip(panels.flat, found, strict=True) if plot.wished), panels.flat[0]))
    return figure


def training(curves: Mapping[str, Mapping[str, Curve]], columns: Sequence[str]) -> Figure:
    """A panel for each figure that is logged, a line for each training."""
    figure, (panels,) = _figure(2.4, 1, len(curves))
    colours = dict(zip(columns, marks(columns), strict=True))
    for axes, (name, by_column) in zip(panels, curves.items(), strict=True):
        for column, curve in by_column.items():
            axes.plot(curve.steps, curve.values, color=colours[column], linewidth=1.2, label=_short(column))
        axes.set(title=_lines(plots.said(name.replace("/", ": ")), len(curves)), xlabel="step")
        axes.set_ylim(bottom=min(0.0, *(curve.values.min() for curve in by_column.values())))
        axes.grid(alpha=0.3)
    if len(next(iter(curves.values()))) > 1:
        _legend(figure, panels[0])
    return figure


def _tilt(names: Sequence[str], panels: int) -> int:
    """By how many degrees names are turned that would lie on each other, below one of so many panels."""
    if sum(map(cell_len, names)) <= _LONGEST * 3 // (2 * panels):
        return 0
    return 35 if len(names) * panels <= 16 else 60


def _lines(title: str, panels: int) -> str:
    """A title in as many lines as it needs above one of so many panels."""
    return textwrap.fill(title, max(_LINE // panels - 8, 8))


def _short(text: str) -> str:
    return plots.short(text, _LONGEST)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the panels, in as many columns as fit, for which the figure grows; what lines are comes last."""
    from matplotlib.container import Container

    pairs = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: not isinstance(pair[0], Container)
    )
    handles, labels = zip(*pairs, strict=True)
    beside = max(1, 100 // (max(map(cell_len, labels)) + 8))
    figure.set_figheight(figure.get_figheight() + 0.16 * ((len(labels) - 1) // beside))
    figure.legend(handles, labels, loc="outside upper center", ncols=beside)
