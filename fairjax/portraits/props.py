"""What people hold: a tool of the trade beside the right shoulder, in the corner x 44..64, y 38..64 of the picture."""

from __future__ import annotations

from collections.abc import Callable

from fairjax.portraits.drawing import Canvas, Colour, colour, shade

Drawing = Callable[[Canvas, Colour], None]
_WHITE, _INK, _STEEL, _WOOD, _GOLD, _GREEN = map(
    colour, ("#f7f6f2", "#26262b", "#b4bcc4", "#8a5a34", "#e0b03c", "#4f8a4b")
)


def none(c: Canvas, fill: Colour) -> None:
    """Empty hands."""


def stethoscope(c: Canvas, fill: Colour) -> None:
    c.arc(32, 46, 9, 15, 10, 170, fill, 1.8)
    c.line([(37, 58), (40, 63)], fill, 1.6)
    c.ellipse(41, 63, 2.4, 2.4, _STEEL)


def handle(c: Canvas) -> None:
    c.line([(55, 66), (55, 44)], _WOOD, 2.6)


def wrench(c: Canvas, fill: Colour) -> None:
    c.line([(54, 66), (54, 47)], fill, 3.4)
    c.ring(54, 43, 4.4, 4.4, fill, 2.6)
    c.box(52.6, 36, 55.4, 42, shade(fill, 0.4))


def hammer(c: Canvas, fill: Colour) -> None:
    handle(c)
    c.box(48, 39, 61, 45, fill, 1)


def mallet(c: Canvas, fill: Colour) -> None:
    c.line([(46, 62), (58, 50)], _WOOD, 2.4)
    c.polygon([(50, 44), (57, 39), (63, 47), (56, 52)], fill)


def brush(c: Canvas, fill: Colour) -> None:
    c.ellipse(53, 57, 10, 7.5, _WOOD)
    for x, y, f in ((47, 55, "#c8372d"), (52, 52.6, "#e0b03c"), (58, 54, "#3f6fb5"), (51, 60.5, "#4f8a4b")):
        c.ellipse(x, y, 1.9, 1.7, colour(f))
    c.line([(56, 62), (61, 40)], fill, 1.6)


def scissors(c: Canvas, fill: Colour) -> None:
    c.line([(50, 56), (58, 39)], _STEEL, 2)
    c.line([(58, 56), (50, 39)], _STEEL, 2)
    c.ring(49, 59, 3.6, 3.6, fill, 1.8)
    c.ring(59, 59, 3.6, 3.6, fill, 1.8)


def spoon(c: Canvas, fill: Colour) -> None:
    c.line([(55, 66), (55, 46)], fill, 2.2)
    c.ellipse(55, 43, 4, 5.4, fill)


def flask(c: Canvas, fill: Colour) -> None:
    c.polygon([(52, 41), (57, 41), (57, 48), (63, 61), (46, 61), (52, 48)], _WHITE)
    c.polygon([(50.6, 52), (58.6, 52), (62, 60), (47, 60)], fill)


def microphone(c: Canvas, fill: Colour) -> None:
    c.polygon([(51, 49), (57, 49), (55, 66), (53, 66)], _INK)
    c.ellipse(54, 45, 4.8, 5.2, fill)


def camera(c: Canvas, fill: Colour) -> None:
    c.box(43, 47, 63, 61, fill, 1.6)
    c.box(48, 43.6, 56, 48, fill)
    c.ellipse(53, 54, 5, 5, _STEEL)
    c.ellipse(53, 54, 3, 3, _INK)


def guitar(c: Canvas, fill: Colour) -> None:
    c.line([(50, 58), (62, 36)], _WOOD, 2.4)
    c.ellipse(48, 60, 7, 6, fill)
    c.ellipse(52, 54, 4.6, 4.2, fill)
    c.ellipse(49.6, 58, 2, 2, _INK)


def plant(c: Canvas, fill: Colour) -> None:
    c.polygon([(48, 55), (60, 55), (58, 65), (50, 65)], colour("#b5623c"))
    for x, y in ((49, 49), (54, 46), (59, 49)):
        c.ellipse(x, y, 3.4, 4.6, _GREEN)
    for x, y in ((49, 46), (54, 42), (59, 46)):
        c.ellipse(x, y, 2.4, 2.4, fill)


def ball(c: Canvas, fill: Colour) -> None:
    c.ellipse(54, 54, 8.5, 8.5, fill)
    c.arc(46, 54, 8.5, 8.5, 300, 60, shade(fill, 0.55), 1)
    c.arc(62, 54, 8.5, 8.5, 120, 240, shade(fill, 0.55), 1)


def book(c: Canvas, fill: Colour) -> None:
    c.box(44, 46, 62, 64, fill, 1)
    c.box(47, 48, 61, 51, _WHITE)
    c.box(47, 54, 57, 55.4, shade(fill, 1.5))


def laptop(c: Canvas, fill: Colour) -> None:
    c.box(42, 44, 64, 60, _STEEL, 1)
    c.box(43.4, 45.4, 64, 58.4, fill)
    for y in (48, 51, 54):
        c.line([(45, y), (51 + y % 5, y)], _WHITE, 0.9)


def fish(c: Canvas, fill: Colour) -> None:
    c.curve([(44, 54), (51, 48), (58, 54), (51, 60)], fill)
    c.polygon([(57, 54), (63, 48), (63, 60)], fill)
    c.ellipse(47.6, 53, 0.9, 0.9, _INK)


def bread(c: Canvas, fill: Colour) -> None:
    c.line([(47, 64), (60, 42)], fill, 6.4)
    for k in range(3):
        c.line([(48 + 3.5 * k, 57 - 6 * k), (53 + 3.5 * k, 57 - 6 * k)], shade(fill, 1.5), 1.1)


def cup(c: Canvas, fill: Colour) -> None:
    c.ring(60, 55, 3.6, 4, fill, 1.8)
    c.polygon([(46, 49), (60, 49), (58.6, 64), (47.4, 64)], fill)
    c.ellipse(53, 49, 7, 1.8, colour("#5b3a24"))


def dog(c: Canvas, fill: Colour) -> None:
    c.ellipse(54, 54, 8, 8, fill)
    for x in (47, 61):
        c.ellipse(x, 54, 2.6, 5.6, shade(fill, 0.6))
    c.ellipse(54, 58, 4, 3.2, _WHITE)
    c.ellipse(54, 56.6, 1.6, 1.2, _INK)
    for x in (51, 57):
        c.ellipse(x, 52, 1, 1.1, _INK)


def trophy(c: Canvas, fill: Colour) -> None:
    c.polygon([(47, 42), (61, 42), (58, 53), (50, 53)], fill)
    c.box(52.6, 52, 55.4, 60, fill)
    c.box(48, 60, 60, 63, _WOOD)


def broom(c: Canvas, fill: Colour) -> None:
    c.line([(56, 66), (56, 50)], _WOOD, 2)
    c.polygon([(52, 52), (60, 52), (63, 38), (49, 38)], fill)


def letter(c: Canvas, fill: Colour) -> None:
    c.box(43, 48, 63, 62, _WHITE, 0.8)
    c.line([(43, 49), (53, 56), (63, 49)], fill, 1.4)
    c.box(57, 57, 61, 60, fill)


def magnifier(c: Canvas, fill: Colour) -> None:
    c.line([(57, 56), (63, 65)], _WOOD, 3)
    c.ellipse(53, 49, 7, 7, fill)
    c.ellipse(53, 49, 5.2, 5.2, colour("#cfe6ef"))


def saw(c: Canvas, fill: Colour) -> None:
    c.polygon([(46, 40), (62, 56), (56, 62), (44, 44)], _STEEL)
    c.box(55, 55, 64, 64, fill, 2)


def wheel(c: Canvas, fill: Colour) -> None:
    c.ring(53, 57, 10, 10, fill, 3)
    c.line([(43, 57), (63, 57)], fill, 2)
    c.line([(53, 57), (53, 66)], fill, 2)


def globe(c: Canvas, fill: Colour) -> None:
    c.ellipse(53, 54, 9, 9, fill)
    for x, y, rx, ry in ((50, 50, 4, 3), (56, 57, 3.4, 4)):
        c.ellipse(x, y, rx, ry, _GREEN)


def sword(c: Canvas, fill: Colour) -> None:
    c.polygon([(53, 36), (55, 32), (57, 36), (57, 56), (53, 56)], fill)
    c.box(48, 55, 62, 58, _GOLD)
    c.box(53.6, 57, 56.4, 66, _WOOD)


def money(c: Canvas, fill: Colour) -> None:
    for k in range(4):
        c.ellipse(53, 62 - 3.6 * k, 8, 3, shade(_GOLD, 0.7))
        c.ellipse(53, 61 - 3.6 * k, 8, 3, fill)


def bag(c: Canvas, fill: Colour) -> None:
    c.ring(54, 49, 4, 4, shade(fill, 0.7), 1.8)
    c.box(44, 49, 64, 64, fill, 1.6)
    c.box(52.6, 50.6, 55.4, 62, _WHITE)
    c.box(48, 55, 60, 57.6, _WHITE)


def umbrella(c: Canvas, fill: Colour) -> None:
    c.line([(54, 48), (54, 66)], _INK, 1.6)
    c.chord(54, 51, 10.5, 11, 180, 360, fill)


def basket(c: Canvas, fill: Colour) -> None:
    for x, y in ((48, 49), (53, 47), (58, 49)):
        c.ellipse(x, y, 3.4, 3.4, fill)
    c.polygon([(43, 51), (63, 51), (60, 64), (46, 64)], colour("#b98a4a"))
    c.line([(44.6, 57), (61.6, 57)], _WOOD, 1.2)


PROPS: dict[str, Drawing] = {
    f.__name__: f
    for f in (
        none,
        stethoscope,
        wrench,
        hammer,
        mallet,
        brush,
        scissors,
        spoon,
        flask,
        microphone,
        camera,
        guitar,
        plant,
        ball,
        book,
        laptop,
        fish,
        bread,
        cup,
        dog,
        trophy,
        broom,
        letter,
        magnifier,
        saw,
        wheel,
        globe,
        sword,
        money,
        bag,
        umbrella,
        basket,
    )
}
