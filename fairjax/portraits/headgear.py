"""What people wear on their heads. Nothing hides the face, and hair, lips or beard stay in sight."""

from __future__ import annotations

from collections.abc import Callable

from fairjax.portraits.drawing import Canvas, Colour, colour, shade

Drawing = Callable[[Canvas, Colour, Colour], None]
_INK, _GOLD = colour("#26262b"), colour("#e0b03c")


def toque(c: Canvas, first: Colour, second: Colour) -> None:
    for x, y in ((22, 8), (32, 5.5), (42, 8)):
        c.ellipse(x, y, 8, 6.6, first)
    c.box(20.5, 9, 43.5, 18.6, second, 1)


def hardhat(c: Canvas, first: Colour, second: Colour) -> None:
    c.chord(32, 18.4, 14.6, 14, 180, 360, first)
    c.box(15, 16.6, 49, 19.6, second, 1.4)
    c.box(30, 4.6, 34, 17, shade(first, 1.3), 1.5)


def peaked(c: Canvas, first: Colour, second: Colour) -> None:
    c.curve([(15, 11), (22, 5), (32, 3.6), (42, 5), (49, 11), (45, 15.5), (19, 15.5)], first)
    c.box(18.6, 13, 45.4, 17.4, shade(first, 0.7))
    c.curve([(18.6, 17), (45.4, 17), (43, 20.6), (32, 21.8), (21, 20.6)], _INK)
    c.ellipse(32, 11, 2.6, 2.6, second)


def cap(c: Canvas, first: Colour, second: Colour) -> None:
    c.chord(32, 18, 13.4, 12.4, 180, 360, first)
    c.curve([(19, 17), (45, 17), (46, 20), (32, 21.6), (18, 20)], second)
    c.ellipse(32, 5.8, 1.4, 1.2, second)


def helmet(c: Canvas, first: Colour, second: Colour) -> None:
    shell = (
        *((15.5, 27), (15, 16), (22, 7), (32, 4.6), (42, 7), (49, 16)),
        *((48.5, 27), (45.5, 26), (44.6, 19.5), (32, 17), (19.4, 19.5), (18.5, 26)),
    )
    c.curve(shell, first)
    c.polygon([(30, 4.8), (34, 4.8), (35, 17.2), (29, 17.2)], second)


def firehat(c: Canvas, first: Colour, second: Colour) -> None:
    c.chord(32, 18, 13.4, 14, 180, 360, first)
    rim = ((11, 21), (17, 15.6), (32, 14), (47, 15.6), (53, 21), (44, 19.6), (32, 18.8), (20, 19.6))
    c.curve(rim, shade(first, 0.8))
    c.polygon([(27.8, 8), (32, 5.6), (36.2, 8), (35.4, 15), (32, 17), (28.6, 15)], second)


def brim(c: Canvas, first: Colour, second: Colour) -> None:
    """A wide-brimmed hat with a band."""
    c.ellipse(32, 16.6, 22, 4.6, shade(first, 0.88))
    c.curve([(20.6, 16), (22, 6.6), (32, 4.2), (42, 6.6), (43.4, 16), (32, 18.4)], first)
    c.curve([(20.6, 16.4), (21, 13), (32, 15), (43, 13), (43.4, 16.4), (32, 18.6)], second)


def cowboy(c: Canvas, first: Colour, second: Colour) -> None:
    rim = ((7, 12.5), (14, 16), (32, 14.2), (50, 16), (57, 12.5), (50, 20), (32, 19.4), (14, 20))
    c.curve(rim, shade(first, 0.85))
    c.curve([(20.4, 16.4), (21.4, 6), (27, 2.6), (32, 5.4), (37, 2.6), (42.6, 6), (43.6, 16.4), (32, 18)], first)
    c.line([(20.8, 14.6), (43.2, 14.6)], second, 2)


def tophat(c: Canvas, first: Colour, second: Colour) -> None:
    c.box(20.6, -4, 43.4, 16, first)
    c.box(20.6, 11, 43.4, 15, second)
    c.ellipse(32, 16.6, 18, 3, first)


def beret(c: Canvas, first: Colour, second: Colour) -> None:
    c.curve([(16, 17), (14, 11), (24, 5), (40, 4.6), (51, 9), (48, 16), (40, 17.4), (28, 15.6), (20, 19)], first)
    c.ellipse(33, 4.4, 1.4, 1.6, second)


def beanie(c: Canvas, first: Colour, second: Colour) -> None:
    c.chord(32, 18.6, 13.6, 13.6, 180, 360, first)
    c.box(18, 14.4, 46, 20, second, 2)


def bandana(c: Canvas, first: Colour, second: Colour) -> None:
    c.curve([(19, 20), (19.4, 13), (26, 8.4), (38, 8.4), (44.6, 13), (45, 20), (32, 15.6)], first)
    c.polygon([(45, 17), (53, 15), (52, 20)], shade(first, 0.8))
    for x, y in ((25, 13), (32, 11), (39, 13)):
        c.ellipse(x, y, 1.2, 1.2, second)


def crown(c: Canvas, first: Colour, second: Colour) -> None:
    c.polygon([(20, 17.4), (18, 4), (25, 10.6), (32, 2.6), (39, 10.6), (46, 4), (44, 17.4)], first)
    for x in (25, 32, 39):
        c.ellipse(x, 14, 1.6, 1.6, second)


def mortarboard(c: Canvas, first: Colour, second: Colour) -> None:
    c.polygon([(20, 11), (44, 11), (45, 19), (32, 16.4), (19, 19)], shade(first, 0.8))
    c.polygon([(10, 9), (32, 3), (54, 9), (32, 14.4)], first)
    c.line([(32, 8.6), (49, 10.4), (49.6, 22)], second, 1.4)


def headphones(c: Canvas, first: Colour, second: Colour) -> None:
    c.arc(32, 25, 15, 17.5, 180, 360, first, 2.6)
    for side in (-1, 1):
        c.box(32 + side * 14.6 - 3, 23, 32 + side * 14.6 + 3, 35, second, 2.4)


def goggles(c: Canvas, first: Colour, second: Colour) -> None:
    c.line([(19, 18.5), (45, 18.5)], _INK, 2.4)
    for side in (-1, 1):
        c.ellipse(32 + side * 6, 18, 5.6, 4.2, first)
        c.ellipse(32 + side * 6, 18, 4, 2.8, second)


def headlamp(c: Canvas, first: Colour, second: Colour) -> None:
    hardhat(c, first, first)
    c.ellipse(32, 13, 4.6, 4.6, _INK)
    c.ellipse(32, 13, 3.3, 3.3, second)


def surgical(c: Canvas, first: Colour, second: Colour) -> None:
    c.curve([(18.4, 20.5), (18, 13), (24, 7), (40, 7), (46, 13), (45.6, 20.5), (32, 16.8)], first)
    c.line([(19, 19), (32, 15.8), (45, 19)], second, 1.4)


def visor(c: Canvas, first: Colour, second: Colour) -> None:
    c.line([(19, 17), (32, 15), (45, 17)], first, 3.2)
    c.curve([(18, 17.4), (32, 15.4), (46, 17.4), (45, 21), (32, 22), (19, 21)], second)


def bubble(c: Canvas, first: Colour, second: Colour) -> None:
    c.ring(32, 26.5, 23.4, 23.4, first, 3.2)
    c.arc(32, 26.5, 20, 20, 200, 240, second, 1.6)


def jester(c: Canvas, first: Colour, second: Colour) -> None:
    for side, fill in ((-1, first), (1, second)):
        horn = ((0, 5), (13.5, 4), (18, 14), (19.8, 22), (10.8, 14), (0, 17))
        c.curve([(32 + side * x, y) for x, y in horn], fill)
        c.ellipse(32 + side * 19.8, 23, 2.4, 2.4, _GOLD)


def wreath(c: Canvas, first: Colour, second: Colour) -> None:
    for n, (x, y) in enumerate(((19.5, 19), (23, 15), (27.5, 12.6), (32, 12), (36.5, 12.6), (41, 15), (44.5, 19))):
        c.ellipse(x, y, 2.9, 2.7, (first, second)[n % 2])
        c.ellipse(x, y, 1.0, 1.0, _GOLD)


def cone(c: Canvas, first: Colour, second: Colour) -> None:
    c.polygon([(19, 17), (33, -6), (45, 17), (32, 19)], first)
    c.ellipse(32, 17, 20, 3.4, shade(first, 0.75))
    c.line([(20, 15.6), (44, 15.6)], second, 2.2)


HEADGEAR: dict[str, Drawing] = {
    f.__name__: f
    for f in (
        toque,
        hardhat,
        peaked,
        cap,
        helmet,
        firehat,
        brim,
        cowboy,
        tophat,
        beret,
        beanie,
        bandana,
        crown,
        mortarboard,
        headphones,
        goggles,
        headlamp,
        surgical,
        visor,
        bubble,
        jester,
        wreath,
        cone,
    )
}
