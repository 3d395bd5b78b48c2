"""Where people stand: each backdrop a drawing in two colours over the whole picture. What they hold is in `props`."""

from __future__ import annotations

from collections.abc import Callable

from fairjax.portraits.drawing import Canvas, Colour, colour, shade

Drawing = Callable[[Canvas, Colour, Colour], None]
_WHITE, _INK, _STEEL, _WOOD, _GOLD, _GREEN, _RED = map(
    colour, ("#f7f6f2", "#26262b", "#aeb6be", "#8a5a34", "#e0b03c", "#4f8a4b", "#c8372d")
)


def plain(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)


def shelves(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    books = (_RED, second, _GREEN, _GOLD, colour("#3f6fb5"))
    for row, y in enumerate((4, 23, 42)):
        for n, x in enumerate(range(0, 64, 4)):
            c.box(x + 0.3, y + (n * 7 + row * 3) % 4, x + 3.6, y + 15, books[(n * 3 + row) % 5])
        c.box(-1, y + 15, 65, y + 17, shade(first, 0.6))


def sky(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x, y in ((10, 10), (54, 20), (8, 38)):
        for dx, dy, r in ((-5, 1, 4), (0, -1, 5), (5, 1, 4)):
            c.ellipse(x + dx, y + dy, r, r * 0.75, second)


def field(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    c.ellipse(12, 62, 40, 26, second)
    c.ellipse(58, 66, 40, 28, shade(second, 0.85))
    c.ellipse(55, 9, 5, 5, colour("#f6d55c"))


def sea(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    c.box(-1, 30, 65, 65, second)
    for y in (34, 41, 48):
        for x in range(-4, 64, 12):
            c.arc(x + (y % 2) * 6, y, 6, 2.5, 180, 360, _WHITE, 1)


def stars(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for n in range(22):
        r = 0.8 + (n % 3) * 0.4
        c.ellipse((n * 37) % 64, (n * 23 + n // 3 * 5) % 48, r, r, second)


def bricks(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, second)
    for row, y in enumerate(range(0, 64, 8)):
        for x in range(-8, 64, 14):
            c.box(x + (row % 2) * 7, y + 0.6, x + (row % 2) * 7 + 13, y + 7.2, first)


def tiles(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for k in range(0, 65, 10):
        c.line([(k, -1), (k, 65)], second, 1)
        c.line([(-1, k), (65, k)], second, 1)


def curtains(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x in range(0, 66, 8):
        c.box(x, -1, x + 3.4, 65, second)
    c.box(-1, -1, 65, 5, shade(second, 0.8))


def forest(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x, top in ((6, 8), (18, 16), (46, 14), (58, 6)):
        c.box(x - 1.5, 40, x + 1.5, 60, _WOOD)
        for k in range(3):
            c.polygon(
                [(x, top + k * 11), (x - 8 - k, top + 16 + k * 11), (x + 8 + k, top + 16 + k * 11)],
                shade(second, 1 - 0.1 * k),
            )


def mountains(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x, top, w in ((12, 10, 26), (52, 5, 28)):
        c.polygon([(x - w, 54), (x, top), (x + w, 54)], second)
        c.polygon(
            [
                (x - w * 0.24, top + 11),
                (x, top),
                (x + w * 0.24, top + 11),
                (x + 3, top + 8),
                (x - 2, top + 12),
            ],
            _WHITE,
        )
    c.box(-1, 52, 65, 65, shade(second, 0.75))


def blackboard(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, second)
    c.box(3, 3, 61, 44, _WOOD)
    c.box(5, 5, 59, 42, first)
    for x, y in ((8, 10), (8, 16), (8, 22), (46, 10), (46, 16), (48, 22)):
        c.line([(x, y), (x + 8 + y % 3, y)], _WHITE, 1)


def chart(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for n, height in enumerate((10, 16, 13, 22, 27, 24, 33, 40)):
        c.box(2 + n * 8, 48 - height, 7 + n * 8, 50, second)


def flames(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x, h in ((4, 40), (14, 28), (24, 18), (42, 20), (51, 32), (60, 44)):
        c.curve([(x, 60 - h), (x + 5, 62 - h * 0.5), (x + 6, 62), (x - 6, 62), (x - 5, 62 - h * 0.5)], second)
        c.curve([(x, 62 - h * 0.55), (x + 3, 62), (x - 3, 62)], _GOLD)


def snow(c: Canvas, first: Colour, second: Colour) -> None:
    stars(c, first, second)
    c.ellipse(32, 66, 50, 20, second)


def city(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x, top, w in ((0, 18, 11), (12, 6, 10), (43, 10, 9), (53, 22, 12)):
        c.box(x, top, x + w, 65, second)
        for y in range(top + 3, 60, 6):
            for dx in (2, 6):
                c.box(x + dx, y, x + dx + 2, y + 3, colour("#f6e08a"))


def pipes(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for points in ([(6, -2), (6, 66)], [(58, -2), (58, 66)], [(-2, 12), (66, 12)]):
        c.line(points, second, 5)
        c.line([(x - 1, y - 1) for x, y in points], shade(second, 1.4), 1.2)
    for x in (6, 58):
        c.ring(x, 34, 4.4, 4.4, _RED, 1.8)


def bottles(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for row, y in enumerate((2, 24)):
        for n, x in enumerate(range(2, 62, 8)):
            fill = (second, _GREEN, _GOLD, colour("#9b4dca"))[(n + row) % 4]
            c.box(x, y + 6, x + 5, y + 17, fill, 1)
            c.box(x + 1.6, y + 1, x + 3.4, y + 7, fill)
        c.box(-1, y + 17, 65, y + 19, _WOOD)


def window(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x in (2, 44):
        c.box(x, 6, x + 18, 38, _WHITE)
        c.box(x + 1.6, 7.6, x + 16.4, 36.4, second)
        c.line([(x + 9, 7), (x + 9, 37)], _WHITE, 1.4)
        c.line([(x, 22), (x + 18, 22)], _WHITE, 1.4)


def lights(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x in (8, 32, 56):
        c.polygon([(x, -2), (x - 13, 66), (x + 13, 66)], shade(first, 1.18))
    for x in (8, 32, 56):
        c.ellipse(x, 1, 4, 4, second)


def court(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    c.ring(32, 34, 28, 28, second, 1.8)
    c.line([(-1, 34), (65, 34)], second, 1.8)


def columns(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(-1, -1, 65, 65, first)
    for x in (2, 14, 43, 55):
        c.box(x, 6, x + 7, 65, second)
        c.box(x - 1, 4, x + 8, 8, shade(second, 0.85))
        c.line([(x + 3.5, 8), (x + 3.5, 65)], shade(second, 0.85), 0.8)


BACKDROPS: dict[str, Drawing] = {
    f.__name__: f
    for f in (
        plain,
        shelves,
        sky,
        field,
        sea,
        stars,
        bricks,
        tiles,
        curtains,
        forest,
        mountains,
        blackboard,
        chart,
        flames,
        snow,
        city,
        pipes,
        bottles,
        window,
        lights,
        court,
        columns,
    )
}
