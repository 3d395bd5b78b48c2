"""The report of an evaluation: one HTML page that needs nothing else, with its numbers, plots and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from fairjax import files
from fairjax.evaluation import plots
from fairjax.evaluation.grid import Side, marks, palette
from fairjax.evaluation.plots import Bars, Curve, Dots, Results
from fairjax.fairness.attributes import Attribute

_THUMBNAIL = 128
"""The longest side of a picture in the page, in pixels."""

_WIDTH, _ROW = 480, 38
"""Of plots, in units of their own: they scale with the page. Rows bear their names above their dots, for a phone."""


class Picture(NamedTuple):
    """One image of the page."""

    source: str  # a data: URL
    width: int
    height: int
    alt: str
    bars: list[tuple[str, float, str]]  # colour, confidence, what it says; none without a face
    box: tuple[float, float, float, float] | None  # left, top, width and height in per cent


class Scale(NamedTuple):
    """From values to the units of a plot."""

    low: float
    high: float

    def x(self, value: float) -> float:
        return round(20 + (value - self.low) / (self.high - self.low) * (_WIDTH - 40), 1)


def write(
    path: Path, results: Results, attributes: Sequence[Attribute], sides: Sequence[Side], titles: Sequence[str],
    config: str, curves: Mapping[str, Mapping[str, Curve]],
) -> None:  # fmt: skip
    """Writes the page.

    Args:
        results: what the comparison found (`results.json`).
        attributes: what the classifiers tell, in the order of the bars.
        sides: by column, pictures of some prompts, in the order in which they are shown.
        titles: of these prompts.
        config: the configuration, as YAML.
        curves: of the trainings, as `plots.curves` gives them.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fairjax.evaluation", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "two": lambda value: "–" if value is None else f"{value:z.2f}",
        "three": lambda value: "–" if value is None else f"{value:.3f}",
        "significant": lambda value: "–" if value is None else f"{value:.2g}",
        "share": lambda v: f"{v:.1%}",
        "short": plots.short,
    }
    columns = list(results["columns"])
    main, other = plots.numbers(results)
    page = environment.get_template("report.html.jinja").render(
        results=results,
        columns=columns,
        kinds=plots.kinds(results),
        numbers=main,
        other_numbers=other,
        attributes=attributes,
        palettes={attribute.name: palette(number, attribute.classes) for number, attribute in enumerate(attributes)},
        dumbbells=[dots(plot) for plot in plots.dumbbells(results, attributes)],
        sweeps=[dots(plot) for plot in plots.sweeps(results, attributes)],
        frequencies=[_stacked(plot) for plot in plots.frequencies(results, attributes)],
        pictures=[(title, _pictures(sides, row, attributes)) for row, title in enumerate(titles)],
        curves=[lines(name, by_column, columns) for name, by_column in curves.items()],
        config=config,
    )
    files.write_text(path, page)


def dots(plot: Dots) -> dict[str, Any]:
    """A plot of rows of dots, in the units of the page."""
    scale = Scale(0.0, 1.0 if plot.share else np.ceil(plots.highest(plot) * 1.05 / 0.04) * 0.04)  # ticks of two digits
    rows = []
    for number, row in enumerate(plot.rows):
        ys = (54 + (number + plots.beside(row) / 2) * _ROW).round(1).tolist()
        rows.append(row._asdict() | {
            "y": 54 + number * _ROW,
            "places": [(scale.x(value), y) for value, y in zip(row.values, ys, strict=True)],
            "ranges": [
                (scale.x(max(ends[0], 0.0)), scale.x(ends[1]), y)
                for ends, y in zip(row.intervals, ys, strict=True)
                if ends
            ],
            "lines": [
                (scale.x(mark), *(round(54 + (number + end) * _ROW - 5 * (abs(end) == 0.5), 1) for end in ends))
                for mark, *ends in plots.marked(row)  # beside the dots, and from row to row without a gap
            ],
        })  # fmt: skip
    same = {round(mark, 6) for row in plot.rows for mark in row.marks if mark is not None}
    ticks = np.linspace(scale.low, scale.high, 5)
    return plot._asdict() | {
        "mark": plots.marks_are(plot),
        "columns": list(zip(plot.columns, marks(plot.columns), strict=True)), "rows": rows, "width": _WIDTH,
        "height": 34 + len(rows) * _ROW,
        "mark_value": same.pop() if len(same) == 1 else None,
        "ticks": [(scale.x(tick), f"{tick:.0%}" if plot.share else f"{tick:.2f}") for tick in ticks],
    }  # fmt: skip


def _stacked(plot: Bars) -> dict[str, Any]:
    """Bars with the colours of their parts; below those of the columns, what is wished."""
    classes, colours = plot.attribute.classes, palette(plot.number, plot.attribute.classes)
    wished = [plots.Bar("wished", plot.wished, [None] * len(classes), None)] if plot.wished else []
    rows = [
        {
            "when": bar.column,
            "parts": [
                {"name": name, "share": share, "interval": interval, "colour": colour}
                for name, share, interval, colour in zip(classes, bar.shares, bar.intervals, colours, strict=True)
            ],
            "corrected": bar.corrected,
        }
        for bar in [*plot.bars, *wished]
    ]
    return {"title": plot.title, "rows": rows}


def lines(name: str, by_column: Mapping[str, Curve], columns: Sequence[str]) -> dict[str, Any]:
    """A plot of curves over the steps of trainings, one for each column that was trained, in the units of the page."""
    colours = dict(zip(columns, marks(columns), strict=True))
    steps = np.concatenate([curve.steps for curve in by_column.values()])
    values = np.concatenate([curve.values for curve in by_column.values()])
    low, high, first, last = min(0.0, values.min()), max(values.max(), 1e-9), steps.min(), steps.max()
    drawn = []
    for column, curve in by_column.items():
        x = 40 + (curve.steps - first) / max(last - first, 1) * (_WIDTH - 60)
        y = 150 - (curve.values - low) / (high - low) * 130
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        drawn.append((column, colours[column], points, f"{curve.values[-1]:.2f}"))
    return {
        "title": plots.said(name.replace("/", ": ")), "lines": drawn, "high": _tick(high), "low": _tick(low),
        "first": int(first), "last": int(last), "width": _WIDTH,
    }  # fmt: skip


def _tick(value: float) -> str:
    """A number that fits beside an axis."""
    return next((told for digits in (2, 1) if len(told := f"{value:.{digits}f}") < 5), f"{value:.0f}")


def _pictures(sides: Sequence[Side], row: int, attributes: Sequence[Attribute]) -> list[tuple[str, list[Picture]]]:
    """By column, the pictures of one prompt."""
    return [
        (
            side.name,
            [
                picture(
                    image, {name: probs[row, i] for name, probs in side.probs.items()}, bool(side.has_face[row, i]),
                    side.boxes[row, i], attributes,
                )
                for i, image in enumerate(side.images[row])
            ],
        )
        for side in sides
    ]  # fmt: skip


def picture(
    image: np.ndarray, probs: Mapping[str, np.ndarray], has_face: bool, box: np.ndarray,
    attributes: Sequence[Attribute],
) -> Picture:  # fmt: skip
    """An image uint8 [h, w, 3] with what was predicted of it; `probs` [classes] by attribute, `box` in pixels."""
    height, width = image.shape[:2]
    bars, said = [], []
    for number, attribute in enumerate(attributes):
        if has_face:
            label = int(probs[attribute.name].argmax())
            sure = float(probs[attribute.name][label])
            bars.append((palette(number, attribute.classes)[label], sure, f"{attribute.classes[label]} {sure:.0%}"))
            said.append(f"{attribute.classes[label]} ({sure:.0%})")
    place = None
    if has_face:
        left, top, right, bottom = np.clip(box / np.array([width, height] * 2), 0, 1) * 100
        place = (float(left), float(top), float(right - left), float(bottom - top))
    return Picture(_embedded(image), width, height, ", ".join(said) or "no face", bars, place)


def _embedded(image: np.ndarray) -> str:
    drawn = Image.fromarray(image)
    drawn.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small = max(image.shape[:2]) <= _THUMBNAIL
    drawn.save(buffer, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 88}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
