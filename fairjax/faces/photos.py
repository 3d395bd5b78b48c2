"""Photographs in files: reading them as people see them, and drawing on them where their faces are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

_BOX, _POINT, _INK = "#F0E442", "#56B4E9", "#1F2328"  # Okabe and Ito's, which people with any colour vision tell apart


class Mark(NamedTuple):
    """What is drawn of a face."""

    box: np.ndarray  # [4]: left, top, right, bottom, in pixels
    points: np.ndarray  # [k, 2]: (x, y), counted from the centres of pixels
    title: str


def read(path: Path) -> np.ndarray:
    """A picture as uint8 [h, w, 3], turned as the camera was held.

    Raises:
        FileNotFoundError, ValueError: one line naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    try:
        with opened(path) as picture:
            return np.asarray(upright(picture))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is none that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{path} was not read as a picture: {reason}") from None


def opened(file: Path | BinaryIO) -> Image.Image:
    """A picture as it is stored, whatever its name ends in; raises as `Image.open` does.

    EPS is none: it is a program, which Pillow would have Ghostscript run.
    """
    Image.init()
    return Image.open(file, formats=[kind for kind in Image.OPEN if kind != "EPS"])


def upright(picture: Image.Image) -> Image.Image:
    """A picture in RGB, turned as its camera was: of 16 bits made 8, what is transparent on white.

    Raises:
        ValueError: its numbers are of a range that it does not tell.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("F", "I"):
        raise ValueError("its numbers have 32 bits, and a range that it does not tell")
    if picture.mode.startswith("I;16"):  # which Pillow would clip to 255
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return picture.convert("RGB")


def marked(image: np.ndarray, marks: Iterable[Mark]) -> Image.Image:
    """The picture uint8 [h, w, 3] with boxes, points and titles."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    stroke = max(1, round(min(picture.size) / 256))
    font = ImageFont.load_default(max(12, min(picture.size) // 32))
    for mark in marks:
        left, top, right, bottom = map(float, mark.box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_BOX, width=stroke)
        draw.text(
            (left, top - stroke), mark.title, fill=_BOX, font=font, anchor="lb", stroke_width=stroke, stroke_fill=_INK
        )
        for x, y in mark.points:
            draw.ellipse((x - 2 * stroke, y - 2 * stroke, x + 2 * stroke, y + 2 * stroke), fill=_POINT)
    return picture
