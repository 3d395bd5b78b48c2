"""Pictures of many images: plain grids, and grids in which each image bears what was predicted of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from fairjax.fairness.attributes import Attribute

# Okabe and Ito's colours, which people with any colour vision tell apart
_PALETTES = (
    ("#D55E00", "#0072B2", "#F0E442", "#009E73"),
    ("#CC79A7", "#009E73", "#E69F00", "#56B4E9"),
    ("#56B4E9", "#CC79A7", "#009E73", "#E69F00"),
)
_TONES = {"light": "#F5D5B5", "medium": "#D9A066", "tan": "#9C6B3F", "deep": "#4A2F1E"}
"""Of the embedded world's skin tones, and of nothing else: no other class of people has a colour of its own."""
_MANY = ("#D55E00", "#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#1F2328", "#E69F00")
_COLUMNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SCALE, _WIDEST, _BAR, _GAP, _MARGIN, _TITLE = 2, 256, 22, 4, 16, 26
_PAPER, _INK, _FAINT = "#FFFFFF", "#1F2328", "#E3E6EA"


class Side(NamedTuple):
    """A column of the picture, one model's: its images of some prompts and what was predicted of them."""

    name: str
    images: np.ndarray  # uint8 [p, n, h, w, 3]
    probs: dict[str, np.ndarray]  # attribute -> [p, n, classes]
    has_face: np.ndarray  # [p, n]
    boxes: np.ndarray | None = None  # [p, n, 4]: left, top, right, bottom in pixels; None frames no face


def by_prediction(side: Side, names: Sequence[str], count: int) -> Side:
    """Of each prompt as many images, spread over all, sorted by what is predicted of them.

    By the classes of the attributes `names`, of each class the surest first; those without a face come last.
    """
    sure = side.probs[names[0]].max(-1)
    classes = [side.probs[name].argmax(-1) for name in reversed(names)]
    order = np.lexsort((-sure, *classes, ~side.has_face), axis=-1)  # by the last key first
    places = np.linspace(0, order.shape[1] - 1, min(count, order.shape[1])).astype(int)
    return taken(side, order[:, places])


def taken(side: Side, which: np.ndarray) -> Side:
    """Of each prompt the images of these numbers [p, m], in this order."""

    def of(values: np.ndarray) -> np.ndarray:
        return np.stack([row[numbers] for row, numbers in zip(values, which, strict=True)])

    probs = {name: of(values) for name, values in side.probs.items()}
    boxes = None if side.boxes is None else of(side.boxes)
    return Side(side.name, of(side.images), probs, of(side.has_face), boxes)


def image_grid(images: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Images uint8 [h, w, 3] in rows of `columns`, twice their size."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), _PAPER)
    for number, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (number % columns * width, number // columns * height))
    return sheet.resize((sheet.width * _SCALE, sheet.height * _SCALE), Image.Resampling.LANCZOS)


def palette(number: int, classes: Sequence[str]) -> tuple[str, ...]:
    """The colours of the classes of the attribute of this number."""
    if tuple(classes) == tuple(_TONES):
        return tuple(_TONES.values())
    own = _PALETTES[number % len(_PALETTES)]
    return _spread(own if len(classes) <= len(own) else _MANY, len(classes))


def marks(columns: Sequence[str]) -> list[str]:
    """The colours of columns: hollow for the first, ink for the second, and others after it."""
    return [_PAPER, _INK, *_spread(_COLUMNS, max(len(columns) - 2, 0))][: len(columns)]


def _spread(colours: Sequence[str], count: int) -> tuple[str, ...]:
    """As many colours: the first of these; where they are too few, others between them, which are less easily told."""
    if count <= len(colours):
        return tuple(colours[:count])
    known = np.array([ImageColor.getrgb(colour) for colour in colours])
    places, own = np.linspace(0, 1, count), np.linspace(0, 1, len(colours))
    between = np.stack([np.interp(places, own, channel) for channel in known.T], axis=1).round().astype(int)
    return tuple("#{:02X}{:02X}{:02X}".format(*colour) for colour in between)


def marked(sides: Sequence[Side], titles: Sequence[str], attributes: Sequence[Attribute]) -> Image.Image:
    """A row for each prompt, the sides next to each other; under each image one bar per attribute.

    A bar's colour tells the predicted class, its height the confidence; without a face there is no bar.
    """
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    prompts, columns, height, width = sides[0].images.shape[:4]
    scale = min(_SCALE, _WIDEST / width)
    drawn = (round(width * scale), round(height * scale))
    cell_w, cell_h = drawn[0] + _GAP, drawn[1] + _BAR + 2 * _GAP
    side_w = columns * cell_w
    top = _MARGIN + _TITLE
    wide = len(sides) * side_w + (len(sides) - 1) * _MARGIN
    legend = _legend(attributes, small, wide)
    foot = top + prompts * (cell_h + _TITLE) + _TITLE
    sheet = Image.new("RGB", (2 * _MARGIN + wide, foot + (legend[-1][1] + 1) * _TITLE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, side in enumerate(sides):
        left = _MARGIN + number * (side_w + _MARGIN)
        draw.text((left, _MARGIN - 4), side.name, fill=_INK, font=font)
        for row in range(prompts):
            y = top + row * (cell_h + _TITLE)
            if number == 0:
                draw.text((left, y + 4), titles[row], fill=_INK, font=small)
            for column in range(columns):
                place, has_face = (left + column * cell_w, y + _TITLE), bool(side.has_face[row, column])
                image = Image.fromarray(side.images[row, column])
                sheet.paste(image.resize(drawn, Image.Resampling.LANCZOS), place)
                if has_face and side.boxes is not None:
                    _frame(draw, place, drawn, side.boxes[row, column] * scale)
                probs = {name: value[row, column] for name, value in side.probs.items()}
                below = (place[0], place[1] + drawn[1] + 2)
                _bars(draw, below, drawn[0], probs, attributes, has_face)
    for x, line, text, colour in legend:
        x, y = _MARGIN + x, foot + line * _TITLE - 8
        if colour:
            draw.rectangle((x, y + 3, x + 12, y + 15), fill=colour)
        draw.text((x + 17 * bool(colour), y), text, fill=_INK, font=small)
    return sheet


def _frame(draw, place, drawn, box) -> None:
    """White within ink, so that it is seen on any picture; what is outside of the picture is cut off."""
    edges = np.clip(box, 1, np.array([*drawn] * 2) - 2) + np.array([*place] * 2)
    draw.rectangle(tuple(edges + (-1, -1, 1, 1)), outline=_INK)
    draw.rectangle(tuple(edges), outline=_PAPER)


def _bars(draw, place, width, probs, attributes, has_face) -> None:
    x, y = place
    each = width / len(attributes)
    for number, attribute in enumerate(attributes):
        left, right = x + number * each + 1, x + (number + 1) * each - 2
        draw.rectangle((left, y, right, y + _BAR - 1), fill=_FAINT)
        if has_face:
            chosen = int(probs[attribute.name].argmax())
            full = max(1, round((_BAR - 1) * float(probs[attribute.name][chosen])))
            draw.rectangle(
                (left, y + _BAR - 1 - full, right, y + _BAR - 1), fill=palette(number, attribute.classes)[chosen]
            )


def _legend(attributes, font, width) -> list[tuple[float, int, str, str | None]]:
    """Names of attributes and, each with its colour, of their classes: how far from the left and in which line."""
    found, x, line = [], 0.0, 0
    for number, attribute in enumerate(attributes):
        colours = palette(number, attribute.classes)
        title = attribute.name.replace("_", " ") + ":"
        for text, colour in [(title, None), *zip(attribute.classes, colours, strict=True)]:
            wide = font.getlength(text) + (17 if colour else 0)
            if x and x + wide > width:
                x, line = 0.0, line + 1
            found.append((x, line, text, colour))
            x += wide + (14 if colour else 8)
        x += 18
    return found
