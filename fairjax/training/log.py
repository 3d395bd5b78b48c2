"""What a run writes down as it goes: `log.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from fairjax.training.finetuning import Progress


class Log:
    """`log.jsonl` of a run folder, and the same scalars for TensorBoard. A resumed run continues both."""

    def __init__(self, folder: Path, images_every: int, start: int):
        """Args: start: how many steps the checkpoint has that the run goes on from; later lines are dropped."""
        path = folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:start] if path.is_file() else []
        path.write_text("".join(lines), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        self._images_every, self._since = images_every, time.monotonic()

    def __call__(self, progress: Progress) -> float:
        """Writes one step; returns the seconds since the last."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        row = {"step": progress.step, "seconds": round(seconds, 3)} | progress.scalars
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for name, value in progress.scalars.items():
            self._board.add_scalar(name, value, progress.step)
        if progress.step % self._images_every == 0 or progress.step == progress.steps:
            rows = np.concatenate([np.concatenate(list(row), axis=1) for row in progress.images()], axis=0)
            self._board.add_image("images", rows, progress.step, dataformats="HWC")
        return seconds

    def close(self) -> None:
        self._file.close()
        self._board.close()
