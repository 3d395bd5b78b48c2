"""A canvas on which portraits are drawn: units of a 64x64 picture, four times supersampled, antialiased."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

UNITS = 64
"""The side of the picture in drawing units, whatever its size in pixels."""

_SUPERSAMPLING = 4


def colour(code: str) -> Colour:
    """`"#f6ede4"` -> (246, 237, 228)."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def shade(base: Colour, factor: float) -> Colour:
    """Darker (factor < 1) or, towards white, lighter (factor > 1)."""
    if factor <= 1:
        return tuple(round(channel * factor) for channel in base)  # type: ignore[return-value]
    return tuple(round(channel + (255 - channel) * min(factor - 1, 1)) for channel in base)  # type: ignore[return-value]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with a `share` in [0, 1] of `second`."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def shift_hue(base: Colour, turns: float, value: float = 0.0) -> Colour:
    """The colour with its hue turned and its value changed, so that no two uniforms are quite alike."""
    h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in base))
    r, g, b = colorsys.hsv_to_rgb((h + turns) % 1, s, min(max(v + value, 0), 1))
    return round(r * 255), round(g * 255), round(b * 255)


class Canvas:
    """Draws in picture units. `move` and `zoom` place the person; backdrops are drawn with both at rest."""

    def __init__(self, size: int):
        self.size = size
        self._pixels = size * _SUPERSAMPLING / UNITS
        self.image = Image.new("RGB", (size * _SUPERSAMPLING,) * 2)
        self._draw = ImageDraw.Draw(self.image)
        self.move: Point = (0.0, 0.0)
        self.zoom = 1.0

    def place(self, x: float, y: float) -> Point:
        """Where a point of the person lands in the picture, in picture units; zooming is about the chin."""
        return 32 + (x - 32) * self.zoom + self.move[0], 44 + (y - 44) * self.zoom + self.move[1]

    def _at(self, x: float, y: float) -> Point:
        x, y = self.place(x, y)
        return x * self._pixels, y * self._pixels

    def _bounds(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return *self._at(x0, y0), *self._at(x1, y1)

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        self._draw.polygon([self._at(*point) for point in points], fill=fill)

    def curve(self, points: Sequence[Point], fill: Colour) -> None:
        """A closed smooth shape through `points` (Catmull-Rom)."""
        p = np.asarray(points, float)
        before, after, later = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
        t = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
        smooth = 0.5 * (
            2 * p[None]
            + (after - before)[None] * t
            + (2 * before - 5 * p + 4 * after - later)[None] * t**2
            + (3 * p - before - 3 * after + later)[None] * t**3
        )
        self.polygon([tuple(point) for point in smooth.transpose(1, 0, 2).reshape(-1, 2)], fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self._draw.ellipse(self._bounds(x - rx, y - ry, x + rx, y + ry), fill=fill)

    def ring(self, x: float, y: float, rx: float, ry: float, outline: Colour, width: float) -> None:
        self._draw.ellipse(self._bounds(x - rx, y - ry, x + rx, y + ry), outline=outline, width=self._width(width))

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Colour, width: float
    ) -> None:
        """Part of an ellipse's outline, from `start` to `end` degrees, clockwise from the right."""
        self._draw.arc(self._bounds(x - rx, y - ry, x + rx, y + ry), start, end, fill=fill, width=self._width(width))

    def chord(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Colour) -> None:
        """The part of an ellipse that the chord between two of its angles cuts off."""
        self._draw.chord(self._bounds(x - rx, y - ry, x + rx, y + ry), start, end, fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, radius: float = 0.0) -> None:
        self._draw.rounded_rectangle(self._bounds(x0, y0, x1, y1), radius * self._pixels, fill=fill)

    def line(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        self._draw.line([self._at(*point) for point in points], fill=fill, width=self._width(width), joint="curve")

    def _width(self, width: float) -> int:
        return max(1, round(width * self.zoom * self._pixels))

    def pixels(self) -> np.ndarray:
        """The finished picture, uint8 [size, size, 3]."""
        return np.asarray(self.image.resize((self.size, self.size), Image.Resampling.BOX))
