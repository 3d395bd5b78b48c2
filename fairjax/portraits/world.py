"""Portraits with known attributes: every picture is a pure function of a seed and its number."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from fairjax.config import PORTRAIT_BOX
from fairjax.portraits.backdrops import BACKDROPS
from fairjax.portraits.captions import NO_OCCUPATION, NO_PERSON, TEMPLATES, WORDS, fill
from fairjax.portraits.drawing import Canvas, Colour, colour, shift_hue
from fairjax.portraits.face import Person, hair_before, hair_behind, head, sample_person
from fairjax.portraits.garments import GARMENTS
from fairjax.portraits.headgear import HEADGEAR
from fairjax.portraits.occupations import OCCUPATIONS, Look, Occupation
from fairjax.portraits.props import PROPS

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "skin_tone": ("light", "medium", "tan", "deep"),
    "age": ("young", "old"),
}
"""The attributes of a portrait and their classes."""

TONES = ((1, 2, 3), (4, 5), (6, 7), (8, 9, 10))
"""The Monk tones of each class of skin tone."""

BACKGROUNDS = {
    "white": "#f4f4f1", "grey": "#a9afb5", "blue": "#6aa5dd", "green": "#7cbf80", "yellow": "#f2d06b",
    "red": "#d9675f", "purple": "#a583cf", "orange": "#f0a35c",
}  # fmt: skip

FACE_BOX = PORTRAIT_BOX
"""Holds the face of every portrait: x0, y0, x1, y1 in pixels of a 64 px picture."""

_PLAIN_BACKGROUND, _NO_OCCUPATION, _NO_PERSON = 0.3, 0.06, 0.04
_DESCRIBED = 0.3
"""How many captions of an occupation say what the person looks like, too."""

_EVERYDAY = ("tee", "shirt", "turtleneck", "hood")


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything of a portrait but the person."""

    look: Look
    plain: str | None  # the name of a plain background that replaces the look's own
    move: tuple[float, float]
    zoom: float
    hue: float  # how far the outfit's hue is turned, in turns
    value: float


@dataclasses.dataclass(frozen=True)
class Portrait:
    image: np.ndarray  # uint8 [size, size, 3]
    box: tuple[float, float, float, float]  # of the face: x0, y0, x1, y1, in pixels
    landmarks: np.ndarray  # [5, 2]: eyes, nose, corners of the mouth; in pixels


@dataclasses.dataclass(frozen=True)
class Example:
    image: np.ndarray  # uint8 [64, 64, 3]
    caption: str
    occupation: int  # index into OCCUPATIONS, -1 for none
    labels: dict[str, int]  # attribute -> class, -1 where nobody is shown
    face: bool
    box: tuple[float, float, float, float]
    landmarks: np.ndarray


def render(person: Person | None, scene: Scene, size: int = 64) -> Portrait:
    """Draws a portrait; without a person, the place alone."""

    def turned(*codes: str) -> tuple[Colour, ...]:
        return tuple(shift_hue(colour(code), scene.hue, scene.value) for code in codes)

    c, look = Canvas(size), scene.look
    if scene.plain:
        BACKDROPS["plain"](c, colour(BACKGROUNDS[scene.plain]), colour("#000000"))
    else:
        kind, *codes = look.backdrop
        BACKDROPS[kind](c, *turned(*codes))
    c.move, c.zoom = scene.move, scene.zoom
    if person is not None:
        hair_behind(c, person)
        head(c, person)
        kind, *codes = look.garment
        GARMENTS[kind](c, *turned(*codes))
        hair_before(c, person)
        if look.headgear:
            kind, *codes = look.headgear
            HEADGEAR[kind](c, *turned(*codes))
    c.move, c.zoom = (0.0, 0.0), 1.0
    kind, code = look.prop
    PROPS[kind](c, *turned(code))
    c.move, c.zoom = scene.move, scene.zoom
    points = np.array([c.place(x, y) for x, y in ((27, 28.6), (37, 28.6), (32, 34), (28.6, 38.6), (35.4, 38.6))])
    (x0, y0), (x1, y1) = c.place(20, 15.5), c.place(44, 44.5)
    scale = size / 64
    return Portrait(c.pixels(), (x0 * scale, y0 * scale, x1 * scale, y1 * scale), points * scale)


def sample_scene(rng: np.random.Generator, occupation: Occupation | None) -> Scene:
    """A place and an outfit, of an occupation or of every day."""
    backgrounds = tuple(BACKGROUNDS)
    if occupation:
        look = occupation.look
    else:
        first, second, wall = ("#{:02x}{:02x}{:02x}".format(*rng.integers(60, 230, 3)) for _ in range(3))
        kind = _EVERYDAY[rng.integers(len(_EVERYDAY))]
        look = Look((kind, first, second), None, ("none", "#000000"), ("plain", wall, wall))
    plain = backgrounds[rng.integers(len(backgrounds))] if rng.random() < _PLAIN_BACKGROUND else None
    move = (float(rng.uniform(-2, 2)), float(rng.uniform(-1, 2)))
    return Scene(
        look,
        plain,
        move,
        float(rng.uniform(0.95, 1.05)),
        float(rng.normal(0, 0.012)),
        float(rng.normal(0, 0.03)),
    )


def sample_labels(rng: np.random.Generator, occupation: Occupation | None, biased: bool) -> dict[str, int]:
    """Classes of a person: by the occupation's skews where `biased`, else uniform."""
    uniform = occupation is None or not biased
    female, old = (0.5, 0.5) if uniform else (occupation.female, occupation.old)
    tones = (0.25,) * 4 if uniform else occupation.tones
    return {
        "gender": int(rng.random() >= female),
        "skin_tone": int(rng.choice(4, p=tones)),
        "age": int(rng.random() < old),
    }


def sample_individual(rng: np.random.Generator, labels: dict[str, int]) -> Person:
    """An individual of the given classes."""
    tones = TONES[labels["skin_tone"]]
    gender, age = ATTRIBUTES["gender"][labels["gender"]], ATTRIBUTES["age"][labels["age"]]
    return sample_person(rng, gender, tones[rng.integers(len(tones))], age)


def sample(index: int, seed: int, biased: bool) -> Example:
    """Portrait number `index` of `seed`."""
    rng = np.random.default_rng([seed, index])
    kind, number = rng.random(), int(rng.integers(len(OCCUPATIONS)))
    nobody = kind < _NO_PERSON
    if kind < _NO_PERSON + _NO_OCCUPATION:
        occupation = None
        captions = NO_PERSON if nobody else NO_OCCUPATION
        caption = captions[rng.integers(len(captions))]
    else:
        occupation = OCCUPATIONS[number]
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
    labels = sample_labels(rng, occupation, biased)
    if occupation:
        words = description(np.random.default_rng([seed, index, 1]), labels)
        caption = fill(template, " ".join([*words, occupation.name]))
    person = sample_individual(rng, labels)
    # a place without people may be anybody's place of work
    scene = sample_scene(rng, OCCUPATIONS[number] if nobody else occupation)
    if nobody:
        person, labels = None, dict.fromkeys(ATTRIBUTES, -1)
    if scene.plain:
        caption += f", {scene.plain} background"
    portrait = render(person, scene)
    return Example(
        portrait.image,
        caption,
        number if occupation else -1,
        labels,
        not nobody,
        portrait.box,
        portrait.landmarks,
    )


def description(rng: np.random.Generator, labels: dict[str, int]) -> list[str]:
    """Words for some of the classes of a person, or for none; the pictures of both kinds are skewed alike."""
    if rng.random() >= _DESCRIBED:
        return []
    while not (named := [name for name in WORDS if rng.random() < 0.5]):
        pass
    return [WORDS[name][labels[name]] for name in named]


def same_person_pair(index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two portraits, uint8 [64, 64, 3], of one individual in two occupations."""
    rng = np.random.default_rng([seed, index])
    person = sample_individual(rng, sample_labels(rng, None, biased=False))
    first, second = (sample_scene(rng, OCCUPATIONS[rng.integers(len(OCCUPATIONS))]) for _ in range(2))
    return render(person, first).image, render(person, second).image


def _pair_rows(job: tuple[range, int]) -> np.ndarray:
    indices, seed = job
    return np.stack([np.stack(same_person_pair(index, seed)) for index in indices])


def pairs(count: int, seed: int, workers: int = 2) -> np.ndarray:
    """`same_person_pair` of the first `count` people: uint8 [count, 2, 64, 64, 3]."""
    jobs = [(range(start, min(start + 250, count)), seed) for start in range(0, count, 250)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return np.concatenate(list(pool.map(_pair_rows, jobs)))


def _rows(job: tuple[list[int], int, bool]) -> list[Example]:
    indices, seed, biased = job
    return [sample(index, seed, biased) for index in indices]


def render_many(indices: Iterable[int], seed: int, biased: bool, workers: int = 1) -> dict[str, Any]:
    """Portraits in columns: image [n, 64, 64, 3], caption, occupation, face, box [n, 4], landmarks [n, 5, 2].

    And the labels of each attribute [n], -1 where nobody is shown.
    """
    indices = list(indices)
    jobs = [(indices[start : start + 250], seed, biased) for start in range(0, len(indices), 250)]
    if workers == 1:
        parts = list(map(_rows, jobs))
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(_rows, jobs))
    rows = [row for part in parts for row in part]
    columns: dict[str, Any] = {
        name: np.stack([getattr(row, name) for row in rows]) for name in ("image", "box", "landmarks")
    }
    columns["caption"] = [row.caption for row in rows]
    columns["occupation"] = np.array([row.occupation for row in rows])
    columns["face"] = np.array([int(row.face) for row in rows])
    return columns | {name: np.array([row.labels[name] for row in rows]) for name in ATTRIBUTES}
