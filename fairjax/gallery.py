"""A folder of images, each written when it is made; what the same model and settings made is not made again."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fairjax import files
from fairjax.evaluation import grid
from fairjax.evaluation.columns import AFTER, BASE, Column, Setting
from fairjax.pipeline import Pipeline

_LABEL = "made_by"
"""The key under which a PNG says what made it: only one that says the same is kept, whatever its name."""

_NAMED = re.compile(rf"\d{{2,}}-.*-\d{{3,}}-({BASE}|{AFTER})\.png")
"""What `Gallery.path` calls its files."""

_BATCH, _SHOWN = 64, 16
"""How many images are made together; how many a grid shows side by side, and one below the other."""


class Gallery(NamedTuple):
    """Images of some prompts, each with a number."""

    folder: Path
    prompts: Sequence[str]
    num: int  # of each prompt

    def fill(
        self, pipeline: Pipeline, column: Column, setting: Setting, seed: int,
        on_image: Callable[[int], None] = lambda images: None,
    ) -> int:  # fmt: skip
        """Makes the images that are not there yet; returns how many those were.

        `on_image` is told how many are there.
        """
        made_by = {"model": pipeline.digest, "adapter": column.digest, "seed": seed} | setting._asdict()
        rows = list(np.ndindex(len(self.prompts), self.num))
        labels = [json.dumps(made_by | {"row": row, "prompt": self.prompts[row[0]]}) for row in rows]
        paths = [self.path(column, *row) for row in rows]
        missing = [number for number, path in enumerate(paths) if not _is_kept(path, labels[number])]
        on_image(len(rows) - len(missing))
        if not missing:
            return 0
        drawn = pipeline.draw(
            self.prompts, np.array(rows)[missing], bundle=column.bundle, seed=seed,
            batch_size=min(_BATCH, len(rows)), **setting._asdict(),
        )  # fmt: skip
        for number, image in zip(missing, itertools.chain.from_iterable(drawn), strict=True):
            _keep(paths[number], labels[number], image)
            on_image(1)
        return len(missing)

    def path(self, column: Column, place: int, number: int) -> Path:
        """The file of an image; long prompts may begin alike."""
        return self.folder / f"{place:02d}-{_words(self.prompts[place])}-{number:03d}-{column.name}.png"

    def others(self, columns: Sequence[Column]) -> int:
        """How many images lie beside these: of other prompts, or more of a prompt than these."""
        own = {self.path(column, *row) for column in columns for row in np.ndindex(len(self.prompts), self.num)}
        return sum(_NAMED.fullmatch(path.name) is not None and path not in own for path in self.folder.iterdir())

    def picture(self, columns: Sequence[Column]) -> None:
        """Writes the first images of the first prompts, the columns one below the other."""
        each = min(self.num, _SHOWN)
        rows = [(column, place) for place in range(len(self.prompts)) for column in columns]
        shown = [self.path(*row, number) for row in rows[: max(_SHOWN, len(columns))] for number in range(each)]
        with files.whole(self.folder / "grid.png") as partial:
            grid.image_grid([np.asarray(Image.open(path)) for path in shown], columns=each).save(partial, "PNG")


def _words(prompt: str) -> str:
    """The letters and digits of a prompt, as part of a file's name: in any script, as much as fits one."""
    return re.sub(r"\W+", "-", prompt).strip("-")[:60].encode()[:150].decode(errors="ignore")


def _is_kept(path: Path, label: str) -> bool:
    """Whether an image is there, whole, and bears this label."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
            return image.info.get(_LABEL) == label
    except Exception:  # it is not there, or damaged: what unpacks it can raise anything then
        return False


def _keep(path: Path, label: str, pixels: np.ndarray) -> None:
    """Writes an image under a label; a file of this name is always whole."""
    info = PngInfo()
    info.add_text(_LABEL, label)
    with files.whole(path) as partial:
        Image.fromarray(pixels).save(partial, "PNG", pnginfo=info)
