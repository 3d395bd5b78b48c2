"""What an evaluation compares, column by column, and the images of each, made once and kept."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairjax import files, parallel
from fairjax.adapters.bundle import Bundle
from fairjax.config import Experiment, SettingSection
from fairjax.models.functional import digest
from fairjax.pipeline import Pipeline

BASE = "before"
"""The column of the base model, with which the others are compared."""

_PROMPT = "{prompt}"


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
    """Makes images, a few prompts at a time, and keeps them: the same asked for again is read.

    Images that the folder holds already are not made again, if the same weights, words and settings made them.
    """

    def __init__(self, pipeline: Pipeline, config: Experiment, folder: Path):
        self.pipeline, self.config, self.folder = pipeline, config, folder

    def images(
        self, column: Column, prompts: Sequence[str], setting: Setting, on_batch: Callable[[int], None], *,
        kind: str = "", first: int = 0,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Images uint8 [some, n, H, W, 3] of the next prompts, until there are no more.

        Args:
            on_batch: told how many images a finished batch had.
            kind: what else files of these are called.
            first: the place of the first prompt: noise is of a prompt's place.
        """
        section = self.config.evaluation
        together = max(1, section.batch_size // section.images_per_prompt)
        made_by = {"model": self.pipeline.digest, "adapter": column.digest, "seed": section.seed} | setting._asdict()
        made_by["images_per_prompt"] = section.images_per_prompt
        for place in range(0, len(prompts), together):
            texts = [column.words.replace(_PROMPT, text) for text in prompts[place : place + together]]
            path = self.folder / "samples" / f"{column.file_name}{kind}-{place:04d}.npz"
            label = json.dumps(made_by | {"first": first + place, "prompts": texts})
            images = _kept(path, label)
            if images is None:
                images = self.pipeline.generate(
                    texts, section.images_per_prompt, bundle=column.bundle, seed=section.seed,
                    batch_size=section.batch_size, first=first + place, on_batch=on_batch, **setting._asdict(),
                )  # fmt: skip
                if parallel.is_first():
                    _keep(path, label, images)
            else:
                on_batch(images.shape[0] * images.shape[1])
            yield images


def _kept(path: Path, label: str) -> np.ndarray | None:
    """The images in a file, if it is there, whole, and bears this label."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            return file["images"] if str(file.get("made_by")) == label else None
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
