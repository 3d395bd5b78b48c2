"""The training pictures of the embedded world: rendered once, kept as a `datasets` dataset on disk."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import datasets
import numpy as np

from fairjax.models.functional import to_pixels
from fairjax.portraits import captions, world

_COLOUR = re.compile(r"(\w+) background")
_CHUNK = 2_000


@dataclasses.dataclass(frozen=True)
class Renders:
    """Portraits with what is true of them."""

    images: np.ndarray  # [n, 64, 64, 3], uint8
    captions: list[str]
    labels: dict[str, np.ndarray]  # name -> [n] int32: occupation, face, and every attribute; -1 where it has none

    def __len__(self) -> int:
        return len(self.captions)

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Images as the networks see them: [k, 64, 64, 3], float32 in [-1, 1]."""
        return to_pixels(self.images[indices])

    def colours(self) -> np.ndarray:
        """The background colour that each caption says, as a number [n]; -1 where it says none."""
        said = [match and match.group(1) for match in map(_COLOUR.search, self.captions)]
        names = {name: number for number, name in enumerate(sorted({name for name in said if name}))}
        return np.array([names[name] if name else -1 for name in said])

    def said(self, attribute: str) -> np.ndarray:
        """The class of an attribute that each caption says, [n]; -1 where it says none."""
        return np.array([captions.said(caption, attribute) for caption in self.captions])


def renders(folder: Path, first: int, count: int, *, seed: int, biased: bool) -> Renders:
    """Portraits `first` to `first + count` of a seed; drawn if `folder` does not hold them yet."""
    datasets.disable_progress_bars()
    if not (folder / "dataset_info.json").is_file():
        workers = os.cpu_count() or 1
        chunks = []
        for start in range(first, first + count, _CHUNK):
            rows = world.render_many(range(start, min(start + _CHUNK, first + count)), seed, biased, workers)
            rows = {name: rows[name] for name in ("image", "caption", *_label_names())}
            rows["image"] = [image.tobytes() for image in rows["image"]]
            chunks.append(datasets.Dataset.from_dict(rows))
        datasets.concatenate_datasets(chunks).save_to_disk(folder)
    table = datasets.load_from_disk(folder)
    if len(table) != count:
        raise ValueError(f"{folder} holds {len(table)} portraits, not {count}: remove it, or choose another --work")
    images = np.stack([np.frombuffer(image, np.uint8) for image in table["image"]]).reshape(len(table), 64, 64, 3)
    labels = {name: np.array(table[name], np.int32) for name in _label_names()}
    return Renders(images, list(table["caption"]), labels)


def _label_names() -> tuple[str, ...]:
    return ("occupation", "face", *world.ATTRIBUTES)
