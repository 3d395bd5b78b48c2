"""Heads: skin, hair, eyes, brows, mouth, beard and the signs of age."""

from __future__ import annotations

import dataclasses

import numpy as np

from fairjax.portraits.drawing import Canvas, Colour, colour, mix, shade

MONK = tuple(
    colour(code)
    for code in (
        *("#f6ede4", "#f3e7db", "#f7ead0", "#eadaba", "#d7bd96"),
        *("#a07e56", "#825c43", "#604134", "#3a312a", "#292420"),
    )
)
"""The ten tones of the Monk Skin Tone scale (Monk, 2019), lightest first."""

HAIR = tuple(map(colour, ("#1c1714", "#2e211b", "#4a2f20", "#6b4226", "#8d5a2b", "#b98a4a", "#a5452a")))
GREY = tuple(map(colour, ("#e8e6e1", "#d3d3d2", "#bfc1c4", "#f4f2ee")))
_HAIR_OF_DARKEST = tuple(map(colour, ("#5f3d2a", "#6b4630", "#7d4f2e", "#84402b")))
"""Hair of the two darkest tones: lighter than the skin, or nothing of it would show."""

WOMEN_HAIR = ("long", "bob", "waves", "bun", "curls", "ponytail")
MEN_HAIR = ("crop", "side", "buzz", "quiff", "afro")
BEARDS = ("none", "moustache", "full", "full", "goatee", "stubble")
_WHITE, _INK = colour("#fbfaf7"), colour("#26201d")


@dataclasses.dataclass(frozen=True)
class Person:
    """Who is shown. Everything but the attributes is the individual: two renders of one person share it."""

    gender: str  # "female" or "male": what hair, beard, lips, lashes and brows present
    tone: int  # 1 to 10 on the Monk scale
    age: str  # "young" or "old"
    hair: str
    hair_colour: Colour
    beard: str
    glasses: bool
    eye_colour: Colour
    lips: Colour
    width: float  # of the face, relative to its mean
    length: float
    eyes: float  # distance between the eyes, relative
    eye_size: float
    brow: float  # height above the eyes, in units
    nose: float  # length, relative
    mouth: float  # width, relative


def sample_person(rng: np.random.Generator, gender: str, tone: int, age: str) -> Person:
    """An individual of the given attributes."""
    female, old = gender == "female", age == "old"
    hair = str(rng.choice(WOMEN_HAIR if female else MEN_HAIR))
    if old and not female and rng.random() < 0.4:
        hair = "bald"
    natural = _HAIR_OF_DARKEST if tone >= 9 else HAIR[: 4 if tone >= 6 else len(HAIR)]
    return Person(
        gender,
        tone,
        age,
        hair,
        GREY[rng.integers(len(GREY))] if old else natural[rng.integers(len(natural))],
        "none" if female else str(rng.choice(BEARDS)),
        bool(rng.random() < (0.35 if old else 0.12)),
        (colour("#3c2a1e"), colour("#5a4326"), colour("#3f5b6b"), colour("#4b6142"))[
            rng.integers(4 if tone <= 4 else 2)
        ],
        (colour("#c0303f"), colour("#b5404f"), colour("#a52a4a"), colour("#c9505a"))[rng.integers(4)],
        *(
            float(x)
            for x in rng.normal(0, 1, 7).clip(-2, 2) * (0.035, 0.03, 0.05, 0.08, 0.25, 0.12, 0.09)
            + (1, 1, 1, 1, 0, 1, 1)
        ),
    )


def hair_behind(c: Canvas, p: Person) -> None:
    """What of the hair falls behind the neck."""
    dark = shade(p.hair_colour, 0.82)
    match p.hair:
        case "long":
            c.curve(
                [(19, 20), (32, 11), (45, 20), (48, 36), (49, 54), (40, 58), (24, 58), (15, 54), (16, 36)],
                dark,
            )
        case "waves":
            c.curve(
                [
                    (18, 20),
                    (32, 11),
                    (46, 20),
                    (50, 31),
                    (47, 39),
                    (51, 48),
                    (45, 54),
                    (19, 54),
                    (13, 48),
                    (17, 39),
                    (14, 31),
                ],
                dark,
            )
        case "bob":
            c.curve(
                [(18, 20), (32, 11), (46, 20), (48, 34), (47, 45), (39, 47), (25, 47), (17, 45), (16, 34)],
                dark,
            )
        case "curls":
            for x, y in (
                (18, 20),
                (16, 27),
                (16, 34),
                (18, 41),
                (46, 20),
                (48, 27),
                (48, 34),
                (46, 41),
                (24, 14),
                (32, 12),
                (40, 14),
            ):
                c.ellipse(x, y, 5.6, 5.4, dark)
        case "ponytail":
            c.curve([(18, 20), (32, 11), (46, 20), (48, 34), (46, 43), (18, 43), (16, 34)], dark)
            c.curve([(42, 18), (51, 21), (55, 34), (53, 48), (48, 52), (46, 40), (44, 28)], dark)
        case "bun":
            c.curve([(18, 20), (32, 11), (46, 20), (48, 34), (46, 43), (18, 43), (16, 34)], dark)
            c.ellipse(32, 8.5, 6.6, 5.6, dark)
        case "afro":
            c.ellipse(32, 20, 15.5, 13.5, dark)


def head(c: Canvas, p: Person) -> None:
    """Neck, ears, the face and everything on it, hair excepted."""
    skin = MONK[p.tone - 1]
    deep = p.tone >= 8
    shadow = shade(skin, 1.12) if p.tone >= 9 else shade(skin, 0.84)
    line = shade(skin, 1.4) if p.tone >= 9 else shade(skin, 0.62)
    w, h = 11.4 * p.width, 14.2 * p.length
    jaw = 0.60 if p.gender == "female" else 0.80
    c.box(27.2, 38, 36.8, 52, shade(skin, 0.86), 3)
    for side in (-1, 1):
        c.ellipse(32 + side * w, 30.5, 2.3, 3.3, shadow)
    c.curve(
        [(32, 30 - h), (32 + 0.78 * w, 30 - 0.72 * h), (32 + w, 29), (32 + (jaw + 0.18) * w, 30 + 0.58 * h),
         (32 + jaw * 0.62 * w, 30 + 0.93 * h), (32, 30 + h), (32 - jaw * 0.62 * w, 30 + 0.93 * h),
         (32 - (jaw + 0.18) * w, 30 + 0.58 * h), (32 - w, 29), (32 - 0.78 * w, 30 - 0.72 * h)],
        skin,
    )  # fmt: skip
    _beard(c, p, w, h)
    _eyes(c, p, line)
    nose = 34.2 + 1.6 * (p.nose - 1) * 3
    c.line([(32.2, 30), (33.2, nose), (31.2, nose + 0.3)], line, 0.8)
    _mouth(c, p, skin, deep)
    if p.age == "old":
        _lines(c, line)
    if p.glasses:
        for side in (-1, 1):
            c.ring(32 + side * 5 * p.eyes, 28.6, 3.9, 3.5, _INK, 0.8)
        c.line([(30.8, 28.4), (33.2, 28.4)], _INK, 0.8)


def _eyes(c: Canvas, p: Person, line: Colour) -> None:
    brow_colour = mix(p.hair_colour, _INK, 0.35) if p.age == "young" else mix(p.hair_colour, line, 0.25)
    for side in (-1, 1):
        x, y, size = 32 + side * 5 * p.eyes, 28.6, p.eye_size
        c.ellipse(x, y, 2.5 * size, 1.75 * size, _WHITE)
        c.ellipse(x, y + 0.1, 1.35 * size, 1.5 * size, p.eye_colour)
        c.ellipse(x, y + 0.1, 0.7, 0.75, _INK)
        brow = y - 3.9 - p.brow
        if p.gender == "female":
            c.arc(x, y + 0.5, 2.9 * size, 2.6 * size, 190, 350, _INK, 1.0)
            c.line([(x + side * 2.5 * size, y - 0.6), (x + side * 3.6 * size, y - 1.9)], _INK, 0.8)
            c.arc(x, brow + 2.2, 3.4, 2.4, 205, 335, brow_colour, 0.8)
        else:
            c.arc(x, y + 0.4, 2.6 * size, 2.2 * size, 200, 340, line, 0.7)
            c.line(
                [(x - side * 2.9, brow + 0.9), (x + side * 0.6, brow), (x + side * 3.3, brow + 0.9)],
                brow_colour,
                2.2,
            )


def _mouth(c: Canvas, p: Person, skin: Colour, deep: bool) -> None:
    x, y, w = 32, 38.6, p.mouth
    if p.gender == "female":
        lips = mix(p.lips, skin, 0.12)
        c.polygon([(x - 4 * w, y), (x - 1.3, y - 1.8), (x, y - 1.1), (x + 1.3, y - 1.8), (x + 4 * w, y)], lips)
        c.chord(x, y - 0.2, 3.9 * w, 2.7, 0, 180, shade(lips, 1.08))
        c.line([(x - 3.4 * w, y), (x + 3.4 * w, y)], shade(lips, 0.6), 0.6)
    else:
        tone = mix(skin, colour("#a8584e"), 0.55) if not deep else mix(skin, colour("#b9786a"), 0.6)
        c.arc(x, y - 1.4, 3.4 * w, 2.0, 20, 160, tone, 1.1)


def _beard(c: Canvas, p: Person, w: float, h: float) -> None:
    skin = MONK[p.tone - 1]
    base = shade(p.hair_colour, 0.92)
    if p.beard in ("full", "stubble"):
        fill = base if p.beard == "full" else mix(skin, p.hair_colour, 0.4)
        c.curve(
            [(32 - 0.97 * w, 32), (32 - 0.9 * w, 39), (32 - 0.55 * w, 30 + 0.98 * h), (32, 30 + 1.05 * h),
             (32 + 0.55 * w, 30 + 0.98 * h), (32 + 0.9 * w, 39), (32 + 0.97 * w, 32), (32 + 0.62 * w, 36),
             (32 + 3, 35.9), (32 - 3, 35.9), (32 - 0.62 * w, 36)],
            fill,
        )  # fmt: skip
        c.ellipse(32, 38.9, 3.5, 1.5, skin)
    if p.beard in ("moustache", "goatee"):
        c.curve([(27.4, 37.6), (32, 35.6), (36.6, 37.6), (32, 37.4)], base)
    if p.beard == "goatee":
        c.ellipse(32, 42.4, 3.2, 2.4, base)


def _lines(c: Canvas, line: Colour) -> None:
    for y in (19.6, 21.8):
        c.arc(32, y + 2, 6.5, 2.2, 215, 325, line, 0.6)
    for side in (-1, 1):
        c.line([(32 + side * 3.6, 34.6), (32 + side * 5.6, 38.4)], line, 0.7)
        c.arc(32 + side * 5, 30.3, 2.9, 1.8, 25, 155, line, 0.6)
        c.line([(32 + side * 8.8, 28.0), (32 + side * 10.6, 27.0)], line, 0.5)
        c.line([(32 + side * 8.8, 29.2), (32 + side * 10.6, 29.8)], line, 0.5)


def hair_before(c: Canvas, p: Person) -> None:
    """What of the hair lies on the head and frames the face."""
    fill, w = p.hair_colour, 11.4 * p.width
    left, right = 32 - w - 1, 32 + w + 1
    match p.hair:
        case "bald":
            for side in (-1, 1):
                c.ellipse(32 + side * (w - 0.4), 26, 1.9, 4.6, fill)
        case "buzz" | "crop":
            depth = 20.5 if p.hair == "buzz" else 21.5
            c.curve(
                [
                    (left + 1, 27),
                    (left + 1, 19),
                    (26, 14),
                    (38, 14),
                    (right - 1, 19),
                    (right - 1, 27),
                    (right - 3, depth),
                    (32, depth - 2.5),
                    (left + 3, depth),
                ],
                fill,
            )
        case "side":
            c.curve(
                [
                    (left, 27),
                    (left, 17),
                    (27, 12.2),
                    (40, 12.6),
                    (right, 19),
                    (right, 27),
                    (right - 2.6, 21.5),
                    (36, 21),
                    (27, 17.6),
                    (left + 2.4, 22),
                ],
                fill,
            )
        case "quiff":
            c.curve(
                [
                    (left + 0.6, 26),
                    (left + 1, 18),
                    (25, 10.5),
                    (37, 9.5),
                    (right - 1, 17),
                    (right - 0.6, 26),
                    (right - 2.8, 20.5),
                    (32, 17.8),
                    (left + 2.8, 20.5),
                ],
                fill,
            )
        case "afro":
            c.curve(
                [
                    (left, 27),
                    (left, 18),
                    (25, 11),
                    (39, 11),
                    (right, 18),
                    (right, 27),
                    (right - 2.4, 20.5),
                    (32, 18),
                    (left + 2.4, 20.5),
                ],
                fill,
            )
        case "curls":
            for x, y in (
                (21, 20),
                (25, 16.5),
                (30, 15),
                (35, 15),
                (39.5, 16.5),
                (43, 20),
                (20, 25),
                (44, 25),
            ):
                c.ellipse(x, y, 3.6, 3.4, fill)
        case "bun" | "ponytail":  # combed back, with a strand on each side
            c.curve(
                [
                    (left - 1, 38),
                    (left - 1, 18),
                    (26, 12.6),
                    (38, 12.6),
                    (right + 1, 18),
                    (right + 1, 38),
                    (right - 1.2, 40),
                    (right - 2.4, 23),
                    (32, 17.4),
                    (left + 2.4, 23),
                    (left + 1.2, 40),
                ],
                fill,
            )
        case _:  # long, bob, waves: parted, falling past the cheeks
            c.curve(
                [
                    (32, 14),
                    (25, 12.5),
                    (left - 0.6, 19),
                    (left - 1.8, 33),
                    (left - 0.8, 43),
                    (left + 2.2, 43),
                    (left + 1.8, 30),
                    (25, 20.5),
                ],
                fill,
            )
            c.curve(
                [
                    (31, 13),
                    (39, 12.5),
                    (right + 0.6, 19),
                    (right + 1.8, 33),
                    (right + 0.8, 43),
                    (right - 2.2, 43),
                    (right - 1.8, 30),
                    (40, 21),
                    (31, 17),
                ],
                fill,
            )
