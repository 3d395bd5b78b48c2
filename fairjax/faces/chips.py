"""The faces of many pictures: found, and cut out for a classifier or embedded for a bank."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageOps

from fairjax import files
from fairjax.convert.pickles import EMBEDDINGS
from fairjax.faces import reading
from fairjax.faces.geometry import MARGINS, crop, expand
from fairjax.faces.judges import FaceEmbedding
from fairjax.faces.labelled import Labelled
from fairjax.faces.located import Faces, FixedBox, Locator
from fairjax.faces.photos import upright
from fairjax.fairness.losses import normalise
from fairjax.models.functional import Params, to_pixels, to_uint8

DETECTORS = ("blazeface", "insightface", "whole")
"""What finds faces; "whole": each picture is one face and nothing more."""

_CANVAS = 512
"""Pictures are shown to a detector in a square of this side, larger ones made smaller."""

_BATCH = 32

Cut = Callable[[jax.Array, Faces], jax.Array]
"""(images [n, h, h, 3], their faces) -> pictures of the faces [n, size, size, 3]."""


@dataclasses.dataclass(frozen=True)
class Finder:
    """A locator with its parameters, and how it wants pictures."""

    locator: Locator
    params: Params
    side: int  # of the square that a picture is put into
    margin: float  # by which crops are larger than boxes
    fills: bool = False  # whether pictures fill that square, whatever their size


def finder(detector: str, size: int, weights: Path | None = None) -> Finder:
    """The detector of this name, of whose faces pictures of `size` pixels are wanted.

    Raises:
        ValueError, ImportError, FileNotFoundError: one line; where it is not known, or not installed.
    """
    if detector not in DETECTORS:
        raise ValueError(f"detector = {detector!r} must be one of {', '.join(DETECTORS)}")
    if detector == "whole":
        return Finder(FixedBox(), {}, size, 0.0, fills=True)
    return Finder(*reading.detector(detector, weights), _CANVAS, MARGINS[detector])


def cropped(find: Finder, size: int) -> Cut:
    """The crops that classifiers look at."""
    return lambda images, faces: crop(images, expand(faces.boxes, find.margin), size)


def cut_out(
    pictures: Labelled, find: Finder, cut: Cut, path: Path, tell: Callable[[int], None] = lambda images: None
) -> tuple[np.ndarray, np.ndarray]:
    """The face of each picture, uint8 [n, size, size, 3], and whether it has one, [n] bool.

    The faces are kept in `path` (.npy), from which they are read as they are needed: one of 224 pixels takes 150 kB.
    Where an earlier call cut out all of the same pictures, they are there, and nothing is done again.

    Args:
        tell: is told how many pictures each batch had.

    Raises:
        ValueError: one line, where a picture cannot be read.
    """

    @jax.jit
    def faces_of(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        pixels = to_pixels(images)
        faces = find.locator.locate(params, pixels)
        return to_uint8(cut(pixels, faces)), faces.has_face

    done, of = path.with_name(f"{path.stem}-found.npz"), pictures.digest()
    if done.is_file():  # written last
        with np.load(done) as kept:
            if str(kept["of"]) == of:
                tell(len(pictures))
                return np.load(path, mmap_mode="r"), kept["found"]
        done.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    chips, found = None, np.zeros(len(pictures), bool)
    for start, stop, images in squares(pictures, find):
        these, has_face = (np.asarray(values) for values in faces_of(find.params, images))
        if chips is None:
            chips = np.lib.format.open_memmap(path, "w+", np.uint8, (len(pictures), *these.shape[1:]))
        chips[start:stop], found[start:stop] = these[: stop - start], has_face[: stop - start]
        tell(stop - start)
    chips.flush()
    with files.whole(done) as partial:
        with partial.open("wb") as file:
            np.savez(file, found=found, of=of)
    return chips, found


def embedded(
    pictures: Labelled, find: Finder, face: FaceEmbedding, params: Params, tell: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """A bank of those faces that were found: "embeddings" [M, d], at length 1, and by attribute their classes [M].

    Raises:
        ValueError: one line, where a picture cannot be read.
    """

    @jax.jit
    def look(located: Params, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        pixels = to_pixels(images)
        faces = find.locator.locate(located, pixels)
        return normalise(face.embed(params, pixels, faces)), faces.has_face

    embeddings, places = [], []
    for start, stop, images in squares(pictures, find):
        these, has_face = (np.asarray(values)[: stop - start] for values in look(find.params, params, images))
        embeddings.append(these[has_face])
        places.extend(start + np.flatnonzero(has_face))
        tell(stop - start)
    classes = {name: labels[np.array(places, int)] for name, labels in pictures.labels.items()}
    return {EMBEDDINGS: np.concatenate(embeddings)} | classes


def squares(pictures: Labelled, find: Finder) -> Iterator[tuple[int, int, np.ndarray]]:
    """Which pictures a batch has, from and to, and the batch, uint8 [_BATCH, side, side, 3]; the last is part black."""
    for start in range(0, len(pictures), _BATCH):
        stop = min(start + _BATCH, len(pictures))
        batch = np.zeros((_BATCH, find.side, find.side, 3), np.uint8)
        for number in range(start, stop):
            batch[number - start] = _square(pictures, number, find)
        yield start, stop, batch


def _square(pictures: Labelled, number: int, find: Finder) -> np.ndarray:
    """A picture on a square, uint8: in the upper left, made smaller where it must be; or filling it, between bars."""
    try:
        picture = upright(pictures.picture(number))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{pictures.name(number)} cannot be read: {error}") from None
    size = (find.side, find.side)
    if find.fills:
        return np.asarray(ImageOps.pad(picture, size, Image.Resampling.BILINEAR))
    if max(picture.size) > find.side:
        picture = ImageOps.contain(picture, size, Image.Resampling.BILINEAR)
    square = np.zeros((*size, 3), np.uint8)
    square[: picture.height, : picture.width] = np.asarray(picture)
    return square
