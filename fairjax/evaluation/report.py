"""The report of an evaluation: one HTML page that needs nothing else, with its numbers, plots and pictures."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from fairjax import files
from fairjax.evaluation.columns import BASE
from fairjax.evaluation.grid import palette
from fairjax.fairness.attributes import Attribute

_THUMBNAIL = 128
"""The longest side of a picture in the page, in pixels."""

_WIDTH, _LABELS, _ROW = 760, 300, 26
"""Of plots, in units of their own: they scale with the page."""

_CURVE_POINTS = 200


class Picture(NamedTuple):
    """One image of the page."""

    source: str  # a data: URL
    width: int
    height: int
    alt: str
    bars: list[tuple[str, float, str]]  # colour, confidence, what it says; none without a face
    box: tuple[float, float, float, float] | None  # left, top, width and height in per cent


class Side(NamedTuple):
    """The pictures of one prompt by one model."""

    name: str
    pictures: list[Picture]


class Scale(NamedTuple):
    """From values to the units of a plot."""

    low: float
    high: float

    def x(self, value: float) -> float:
        return round(_LABELS + (value - self.low) / (self.high - self.low) * (_WIDTH - _LABELS - 30), 1)


def write(
    path: Path, results: Mapping[str, Any], attributes: Sequence[Attribute], sides: Sequence[tuple[str, list[Side]]],
    command: Sequence[str], config: str, log: Path | None = None,
) -> None:  # fmt: skip
    """Writes the page.

    Args:
        results: what the comparison found (`results.json`).
        attributes: what the classifiers tell, in the order of the bars.
        sides: by prompt, its pictures before and after.
        command: the command line that made this.
        config: the configuration, as YAML.
        log: `log.jsonl` of the training, for its curves.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fairjax.evaluation", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "two": lambda value: "–" if value is None else f"{value:.2f}",
        "three": lambda value: "–" if value is None else f"{value:.3f}",
        "significant": lambda value: "–" if value is None else f"{value:.2g}",
        "share": lambda v: f"{v:.1%}",
    }
    columns = list(results["columns"])
    targeted = [a for a in attributes if "total_variation" in results[BASE][_first(results[BASE])][a.name]]
    page = environment.get_template("report.html.jinja").render(
        results=results,
        columns=columns,
        kinds=list(results[BASE]),
        counted=list(results["fair_floor"]),
        attributes=attributes,
        palettes={attribute.name: palette(number, attribute.classes) for number, attribute in enumerate(attributes)},
        dumbbells=[dumbbell(results, attribute) for attribute in targeted],
        frequencies=frequencies(results, attributes),
        sweeps=[plot for attribute in targeted for plot in sweep(results, attribute.name)],
        sides=sides,
        curves=curves(log) if log and log.is_file() else [],
        command=shlex.join(command),
        config=config,
    )
    files.write_text(path, page)


def _first(mapping: Mapping[str, Any]) -> str:
    return next(iter(mapping))


def dumbbell(results: Mapping[str, Any], attribute: Attribute) -> dict[str, Any]:
    """A row for each prompt: the share of the attribute's first class by each model, and the share that is wished.

    With more than two classes, the bias instead, and what an exactly fair model measures.
    """
    two, name, columns = len(attribute.classes) == 2, attribute.name, list(results["columns"])
    rows = []

    def value(entry: Mapping[str, Any]) -> float | None:
        return entry[name]["frequencies"][attribute.classes[0]] if two else entry[name]["bias"]

    for prompt in results["per_prompt"]:
        values = [value(prompt[column]) for column in columns]
        if None not in values:
            rows.append({"title": prompt["prompt"], "held_out": prompt["held_out"], "values": values})
    rows.sort(key=lambda row: (row["held_out"], row["values"][0]))
    target, title = None, f"Share of {attribute.classes[0]}" if two else f"Bias in {name.replace('_', ' ')}"
    if two and name in results.get("targets", {}):
        target = results["targets"][name][attribute.classes[0]]
    elif not two:
        target = results["fair_floor"][name]
    line = None if target is None else ("wished" if two else "an exactly fair model", target)
    return _dots(title, columns, rows, line, share=two)


def sweep(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """For each kind of prompt, a row for each setting that was measured at: the bias in an attribute, by each model."""
    found, columns = [], list(results["columns"])
    if not results.get("sweep"):
        return []
    usual = {key: results[key] for key in ("num_steps", "guidance_scale", "solver")}
    settings = [usual | {"columns": {column: results[column] for column in columns}}, *results["sweep"]]
    for kind in results[BASE]:
        rows = []
        for number, setting in enumerate(settings):
            changed = [key for key in usual if setting[key] != usual[key]] if number else usual
            said = ", ".join(_SETTING[key].format(setting[key]) for key in changed) or "the same"
            entries = [setting["columns"][column][kind][name] for column in columns]
            intervals = [entry.get("bias_interval") for entry in entries]
            values = [entry["bias"] for entry in entries]
            if None not in values:
                rows.append({"title": said, "held_out": False, "values": values, "intervals": intervals})
        title = f"Bias in {name.replace('_', ' ')} at other settings, {kind.replace('_', ' ')} prompts"
        found.append(_dots(title, columns, rows, ("an exactly fair model", results["fair_floor"][name])))
    return found


_SETTING = {"num_steps": "{} steps", "guidance_scale": "guidance {}", "solver": "{}"}


def _dots(
    title: str, columns: Sequence[str], rows: list[dict[str, Any]], line: tuple[str, float] | None, share: bool = False
) -> dict[str, Any]:
    """A plot of rows of dots, a dot for each column's value; `line` is drawn through all rows."""
    highest = max([0.1, *(value for row in rows for value in row["values"])])
    scale = Scale(0.0, 1.0 if share else highest * 1.05)
    for number, row in enumerate(rows):
        row |= {"y": 34 + number * _ROW, "xs": [scale.x(value) for value in row["values"]]}
    ticks = np.linspace(scale.low, scale.high, 5)
    return {
        "title": title, "columns": list(zip(columns, marks(columns), strict=True)), "rows": rows, "width": _WIDTH,
        "labels": _LABELS, "height": 44 + len(rows) * _ROW, "target": None if line is None else scale.x(line[1]),
        "target_value": line and line[1], "target_title": line and line[0],
        "ticks": [(scale.x(tick), f"{tick:.0%}" if share else f"{tick:.2f}") for tick in ticks],
    }  # fmt: skip


def marks(columns: Sequence[str]) -> list[str]:
    """The colours of columns: hollow for the first, ink for the second, and others after it."""
    return ["#ffffff", "#1f2328", *palette(0, columns)][: len(columns)]


def frequencies(results: Mapping[str, Any], attributes: Sequence[Attribute]) -> list[dict[str, Any]]:
    """For each attribute and kind of prompt, the mean shares of its classes, before and after."""
    found = []
    for number, attribute in enumerate(attributes):
        for kind in results[BASE]:
            rows = []
            for when in results["columns"]:
                shares = results[when][kind][attribute.name]["frequencies"]
                parts = [
                    {"name": label, "share": shares[label] or 0.0, "colour": palette(number, attribute.classes)[i]}
                    for i, label in enumerate(attribute.classes)
                ]
                rows.append(
                    {"when": when, "parts": parts, "corrected": results[when][kind][attribute.name].get("corrected")}
                )
            title = f"{attribute.name.replace('_', ' ')}, {kind.replace('_', ' ')} prompts"
            found.append({"title": title, "rows": rows, "wished": results.get("targets", {}).get(attribute.name)})
    return found


def curves(log: Path) -> list[dict[str, Any]]:
    """Loss and bias over the training's steps, as lines of a plot, smoothed over a fiftieth of it."""
    lines = files.json_lines(log, step=int)
    names = ["loss", *(name for name in lines[0] if name.startswith("bias/"))] if len(lines) > 1 else []
    found = []
    for name in names:
        steps = np.array([line["step"] for line in lines if line.get(name) is not None], float)
        values = np.array([line[name] for line in lines if line.get(name) is not None], float)
        if len(values) < 2:
            continue
        window = max(1, len(values) // 50)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        x, picked = steps[window - 1 :], np.linspace(0, len(smooth) - 1, min(_CURVE_POINTS, len(smooth))).astype(int)
        x, y = x[picked], smooth[picked]
        low, high = min(0.0, y.min()), max(y.max(), 1e-9)
        points = zip(40 + (x - x[0]) / max(x[-1] - x[0], 1) * 660, 150 - (y - low) / (high - low) * 130, strict=True)
        found.append({
            "title": name.replace("/", ": "), "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in points),
            "high": f"{high:.2f}", "low": f"{low:.2f}", "first": int(x[0]), "last": int(x[-1]), "end": f"{y[-1]:.2f}",
        })  # fmt: skip
    return found


def picture(
    image: np.ndarray, probs: Mapping[str, np.ndarray], has_face: bool, box: np.ndarray | None,
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
    if has_face and box is not None:
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
