"""What people wear over the shoulders: each garment a small drawing in two colours."""

from __future__ import annotations

from collections.abc import Callable

from fairjax.portraits.drawing import Canvas, Colour, Point, colour, shade

Drawing = Callable[[Canvas, Colour, Colour], None]
_WHITE, _STEEL, _GOLD, _BLUE = map(colour, ("#f7f6f2", "#b9c0c7", "#e0b03c", "#3f6fb5"))
_SHOULDERS: list[Point] = [
    (2, 70),
    (4, 56),
    (12, 50.5),
    (25, 47.5),
    (28, 48.5),
    (32, 51),
    (36, 48.5),
    (39, 47.5),
    (52, 50.5),
    (60, 56),
    (62, 70),
]


def _body(c: Canvas, fill: Colour) -> None:
    c.polygon(_SHOULDERS, fill)


def _collar(c: Canvas, fill: Colour) -> None:
    for side in (-1, 1):
        c.polygon([(32 + side * x, y) for x, y in ((6.5, 46.6), (0.5, 51), (5.5, 54.5), (8.5, 49))], fill)


def _tie(c: Canvas, fill: Colour) -> None:
    c.polygon([(30.6, 50.6), (33.4, 50.6), (32.8, 53), (34.2, 66), (32, 69), (29.8, 66), (31.2, 53)], fill)


def tee(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    c.arc(32, 46.6, 6.6, 5.2, 10, 170, second, 1.6)


def shirt(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    _collar(c, shade(first, 1.25))
    c.line([(32, 51), (32, 70)], shade(first, 0.75), 0.8)
    for y in (54.5, 59.5):
        c.ellipse(32, y, 0.8, 0.8, second)


def suit(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    c.polygon([(26, 47.5), (32, 66), (38, 47.5)], _WHITE)
    _tie(c, second)
    for side in (-1, 1):
        lapel = ((6, 46.8), (0.6, 66), (10.5, 55.5), (9, 52.5), (10, 48.5))
        c.polygon([(32 + side * x, y) for x, y in lapel], shade(first, 0.75))


def coat(c: Canvas, first: Colour, second: Colour) -> None:
    """A coat worn open over a top of the second colour."""
    _body(c, second)
    for side in (-1, 1):
        half = ((6.4, 46.8), (4.5, 70), (34, 70), (28, 56), (20, 50.5))
        lapel = ((6.4, 46.8), (5, 62), (12, 56), (10.4, 48.3))
        c.polygon([(32 + side * x, y) for x, y in half], first)
        c.polygon([(32 + side * x, y) for x, y in lapel], shade(first, 0.86))


def robe(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    for x in (10, 19, 45, 54):
        c.line([(x, 52), (x - (32 - x) * 0.1, 70)], shade(first, 0.7), 1.2)
    c.polygon([(27, 47.4), (29.8, 62), (34.2, 62), (37, 47.4), (32, 51)], second)


def apron(c: Canvas, first: Colour, second: Colour) -> None:
    """A shirt of the second colour under an apron of the first."""
    _body(c, second)
    c.polygon([(19, 56), (45, 56), (48, 70), (16, 70)], first)
    for side in (-1, 1):
        c.line([(32 + side * 7, 47.6), (32 + side * 11, 57)], first, 2.4)


def dungarees(c: Canvas, first: Colour, second: Colour) -> None:
    apron(c, first, second)
    c.box(27, 60, 37, 68, shade(first, 0.8), 0.6)
    for side in (-1, 1):
        c.ellipse(32 + side * 11, 57.4, 1.3, 1.3, _GOLD)


def vest(c: Canvas, first: Colour, second: Colour) -> None:
    """A high-visibility vest with reflecting stripes, over a top of the second colour."""
    _body(c, second)
    c.polygon([(17, 49.3), (27, 47.4), (32, 62), (37, 47.4), (47, 49.3), (50, 70), (14, 70)], first)
    c.line([(14, 61), (50, 61)], _STEEL, 2.6)
    for side in (-1, 1):
        c.line([(32 + side * 10.5, 48.5), (32 + side * 12, 70)], _STEEL, 2.4)


def uniform(c: Canvas, first: Colour, second: Colour) -> None:
    """Shoulder boards, badges and a tie."""
    _body(c, first)
    _collar(c, shade(first, 1.2))
    _tie(c, second)
    for side in (-1, 1):
        board = ((17, 48.6), (27, 51.6), (27.5, 54.6), (16.5, 51.4))
        c.polygon([(32 + side * x, y) for x, y in board], _GOLD)
        c.box(32 + side * 13 - 2.5, 57, 32 + side * 13 + 2.5, 59, _GOLD)


def buttoned(c: Canvas, first: Colour, second: Colour) -> None:
    """A double-breasted jacket."""
    _body(c, first)
    c.polygon([(24.5, 46.4), (32, 52), (39.5, 46.4), (41, 50.2), (32, 55), (23, 50.2)], shade(first, 0.84))
    for y in (57, 62):
        for x in (27, 37):
            c.ellipse(x, y, 1.3, 1.3, second)


def scrubs(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    for side in (-1, 1):
        c.line([(32 + side * 6.6, 47), (32, 57)], shade(first, 0.72), 2.2)
    c.box(39, 58, 47, 66, shade(first, 0.82), 0.6)
    c.line([(42, 57), (42, 61)], second, 1.4)


def jersey(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    c.line([(0, 60), (64, 60)], second, 4.2)
    c.arc(32, 46.6, 6.6, 5.2, 10, 170, second, 2.2)


def stripes(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    for y in (53.2, 57.4, 61.6):
        inset = 8 if y < 55 else 3
        c.line([(inset, y), (64 - inset, y)], second, 1.8)


def spacesuit(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    c.arc(32, 47, 13, 5.5, 0, 180, _STEEL, 3.2)
    c.box(24, 57, 40, 66, shade(first, 0.8), 1)
    for x, fill in ((27.5, second), (32, _GOLD), (36.5, _BLUE)):
        c.ellipse(x, 61, 1.5, 1.5, fill)
    c.box(8, 56, 15, 61, second)


def armour(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    for side in (-1, 1):
        c.ellipse(32 + side * 21, 54, 8.5, 6.2, shade(first, 1.3))
        c.arc(32 + side * 21, 54, 8.5, 6.2, 0, 180, shade(first, 0.6), 1)
    c.polygon([(27, 54), (37, 54), (37, 64), (32, 68), (27, 64)], second)


def gown(c: Canvas, first: Colour, second: Colour) -> None:
    """A dress with a wide collar of the second colour."""
    _body(c, first)
    collar = (
        (18, 49),
        (26, 54),
        (32, 56),
        (38, 54),
        (46, 49),
        (47, 53),
        (38, 60),
        (32, 61.5),
        (26, 60),
        (17, 53),
    )
    c.curve(collar, second)


def ruff(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    for x in range(17, 48, 5):
        y = 50.5 - 0.012 * (x - 32) ** 2
        c.ellipse(x, y, 3.2, 2.8, second)
        c.ellipse(x, y + 0.5, 1.6, 1.4, shade(second, 0.8))


def diamonds(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    for x, y in ((12, 57), (22, 57), (42, 57), (52, 57), (32, 60), (17, 64), (27, 66), (37, 66), (47, 64)):
        c.polygon([(x, y - 4), (x + 3.6, y), (x, y + 4), (x - 3.6, y)], second)


def hood(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    c.curve([(18, 50), (24, 45), (32, 50), (40, 45), (46, 50), (40, 56), (32, 57.5), (24, 56)], shade(first, 0.8))
    for side in (-1, 1):
        c.line([(32 + side * 3.5, 55), (32 + side * 3.8, 63)], second, 1)


def harness(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    for side in (-1, 1):
        c.line([(32 + side * 11, 47.6), (32 - side * 9, 68)], second, 2.6)
    c.ring(32, 57.5, 2.4, 2.4, _STEEL, 1.2)


def turtleneck(c: Canvas, first: Colour, second: Colour) -> None:
    _body(c, first)
    c.box(25.5, 43.6, 38.5, 51, shade(first, 0.84), 1.4)
    c.line([(26, 49.5), (32, 60), (38, 49.5)], second, 1.1)
    c.ellipse(32, 60.5, 2, 2, second)


GARMENTS: dict[str, Drawing] = {
    f.__name__: f
    for f in (
        tee,
        shirt,
        suit,
        coat,
        robe,
        apron,
        dungarees,
        vest,
        uniform,
        buttoned,
        scrubs,
        jersey,
        stripes,
        spacesuit,
        armour,
        gown,
        ruff,
        diamonds,
        hood,
        harness,
        turtleneck,
    )
}
