"""What an evaluation compares, column by column, and the images of each, made once and kept."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile

from fairjax import files, parallel
from fairjax.adapters.bundle import Bundle
from fairjax.config import EvaluationSection, Experiment, SettingSection
from fairjax.models.functional import digest
from fairjax.pipeline import Pipeline

BASE = "before"
"""The column of the base model, with which the others are compared."""

AFTER = "after"
"""That of the adapter, where it is the only one."""

_PROMPT = "{prompt}"

_HEADER = 128
"""Bytes before an array's own in a file, in which numpy says what it is."""


class Column(NamedTuple):
    """Who makes images: the base model, with an adapter, or asked in other words."""

    name: str
    bundle: Bundle
    words: str = _PROMPT  # what each prompt becomes
    log: Path | None = None  # of the adapter's training

    @property
    def digest(self) -> str:
        """Tells adapters apart."""
        return digest(self.bundle)

    @property
    def file_name(self) -> str:
        """The name, fit for a file, and as different from others' as it is."""
        fit = re.sub(r"[^A-Za-z0-9_]+", "-", self.name).strip("-")[:60]
        return fit if fit == self.name else f"{fit}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


class Setting(NamedTuple):
    """How images are made."""

    num_steps: int
    guidance_scale: float
    solver: str

    @classmethod
    def of(cls, config: Experiment, otherwise: SettingSection | None = None) -> Setting:
        """As a configuration measures, but for what is said otherwise."""
        usual, training = config.evaluation, config.training
        said = (otherwise or SettingSection(), usual, training)

        def first(*values):
            return next(value for value in values if value is not None)

        return cls(
            first(said[0].num_steps, usual.num_steps),
            first(*(section.guidance_scale for section in said)),
            first(*(section.solver for section in said)),
        )


class Studio:
    """Makes images, and keeps them by prompt: the same asked for again is read.

    Images that the folder holds already are not made again, if the same weights, words and settings made them.
    """

    def __init__(self, pipeline: Pipeline, section: EvaluationSection, folder: Path):
        self.pipeline, self.section, self.folder = pipeline, section, folder

    def images(
        self, column: Column, prompts: Sequence[str], setting: Setting, on_batch: Callable[[int], None],
        suffix: str = "",
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Images uint8 [some, n, H, W, 3] of the next prompts, as many as are done, until there are no more.

        Args:
            on_batch: told how many images are done.
            suffix: of the column's name in the names of files.
        """
        made_by = {"model": self.pipeline.digest, "adapter": column.digest, "seed": self.section.seed}
        made_by |= setting._asdict() | {"images_per_prompt": self.section.images_per_prompt}
        made_by["dtype"] = str(self.pipeline.dtype)
        texts = [column.words.replace(_PROMPT, text) for text in prompts]
        labels = [json.dumps(made_by | {"place": place, "prompt": text}) for place, text in enumerate(texts)]
        shape = self.section.images_per_prompt, *self.pipeline.image_size, 3
        paths = [self.folder / "samples" / f"{column.file_name}{suffix}-{place:04d}.npz" for place in range(len(texts))]
        place = 0
        while place < len(texts):
            kept = _kept(paths[place], labels[place], shape)
            if kept is not None:
                on_batch(len(kept))
                yield kept[None]
                place += 1
                continue
            rest = range(place + 1, len(texts))
            end = next((other for other in rest if _is_kept(paths[other], labels[other])), len(texts))
            # not before: hosts ask each other, and one alone reads what is kept
            size = self.at_once(len(prompts), setting)
            for made in self._made(column, texts[place:end], setting, on_batch, place, size):
                for each in made:
                    if parallel.is_first():
                        _keep(paths[place], labels[place], each)
                    place += 1
                yield made

    def _made(
        self, column: Column, texts: Sequence[str], setting: Setting, on_batch: Callable[[int], None], first: int,
        size: int,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """The same of prompts from place `first` on, `size` images at a time: noise is of a prompt's place."""
        each = self.section.images_per_prompt
        drawn = self.pipeline.draw(
            texts, np.array(list(np.ndindex(len(texts), each))), bundle=column.bundle, seed=self.section.seed,
            batch_size=size, first=first, **setting._asdict(),
        )  # fmt: skip
        waiting: list[np.ndarray] = []
        for batch in drawn:
            waiting.append(batch)
            count = sum(map(len, waiting)) // each
            if count:
                images = np.concatenate(waiting)
                waiting = [images[count * each :]]
                yield images[: count * each].reshape(count, each, *images.shape[1:])
            on_batch(len(batch))  # which may end it: what is whole is kept by then

    def at_once(self, prompts: int, setting: Setting) -> int:
        """How many images of so many prompts are made at once."""
        count = prompts * self.section.images_per_prompt
        if self.section.batch_size:
            return min(self.section.batch_size, count)
        asked = {"num_steps": setting.num_steps, "guidance_scale": setting.guidance_scale}
        return self.pipeline.images_at_once(count, **asked)


def _bears(file: NpzFile, label: str) -> bool:
    """Whether this is what a file says that its images were made by; a longer one, which may be very long, is not."""
    return "made_by" in file and _size(file, "made_by") <= 4 * len(label) and str(file["made_by"]) == label


def _size(file: NpzFile, name: str) -> int:
    """About how many bytes an array would be, which has not been unpacked yet: a few can be unpacked to very many."""
    return file.zip.getinfo(f"{name}.npy").file_size - _HEADER


def _is_kept(path: Path, label: str) -> bool:
    """Whether a file of images bears this label; where it is not there or cannot be read, it does not."""
    try:
        with np.load(path) as file:
            return _bears(file, label)
    except Exception:  # a damaged file can make what unpacks it raise anything
        return False


def _kept(path: Path, label: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The images in a file, if it is there, whole, and bears this label."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            if not _bears(file, label):
                return None
            images = file["images"] if _size(file, "images") <= math.prod(shape) else np.zeros(())
            if images.shape != shape or images.dtype != np.uint8:
                raise ValueError("there is something else in it than its images")
            return images
    except OSError:  # the disk's own: what is made again could not be kept either
        raise
    except Exception as error:  # a damaged file can make what unpacks it raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"warning: {path} is damaged ({reason}): its images are made again", file=sys.stderr, flush=True)
        return None


def _keep(path: Path, label: str, images: np.ndarray) -> None:
    """Writes images under a label; a file of this name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=images, made_by=np.str_(label))
