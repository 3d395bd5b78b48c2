"""What a run writes down as it goes: `log.jsonl`, TensorBoard, and Weights & Biases where it is asked for."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.event_file_writer import EventFileWriter

from fairjax import files, parallel
from fairjax.config import LOG
from fairjax.program import UserError, refused
from fairjax.training.finetuning import StepReport

_QUEUE = 10_000
"""How much may wait to be written for TensorBoard: more than there is between two looks at whether it still is."""


class Log:
    """`log.jsonl` of a run folder, and the same scalars for TensorBoard. A resumed run continues both.

    Args:
        start: how many steps the checkpoint has that the run goes on from; what is later is dropped.
        images: how many a step makes.
        wandb: a Weights & Biases project that gets the same, as the run of the folder's name.

    Raises:
        UserError: Weights & Biases is asked for and not installed.
    """

    def __init__(self, folder: Path, start: int, images: int, wandb: str | None = None):
        self._wandb = _weights_and_biases(wandb, folder) if wandb else None
        path = folder / LOG
        files.write_json_lines(path, (row for row in files.json_lines(path, step=int) if row["step"] <= start))
        self._file, self._images = path.open("a", encoding="utf-8"), images
        self._board = _tensorboard(folder / "tensorboard", start)
        self._full = False
        self._since = time.monotonic()

    def __call__(self, progress: StepReport, images: np.ndarray | None) -> float:
        """Writes one step, with its images if there are any; returns the seconds since the last."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        heartbeat = {
            "seconds": round(seconds, 3), "images_per_second": round(self._images / seconds, 3),
            "devices": jax.device_count(), "memory": parallel.peak_memory(),
        }  # fmt: skip
        row = {"step": progress.step} | heartbeat | progress.scalars
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._flush()
        if self._board and not _is_writing(self._board):
            _warn("TensorBoard gets no more: its files could not be written")
            _events(self._board)._closed = True  # or it tries again when Python ends
            self._board = None
        self.scalars(progress.step, progress.scalars)
        if images is not None:
            rows = np.concatenate([np.concatenate(list(row), axis=1) for row in images], axis=0)
            if self._board:
                self._board.add_image("images", rows, progress.step, dataformats="HWC")
            if self._wandb:
                import wandb

                self._wandb.log({"images": wandb.Image(rows)}, step=progress.step)
        return seconds

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """To TensorBoard, and Weights & Biases; of a step that shows nobody there is no bias to draw."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def _flush(self) -> None:
        """To the disk; what a full one does not take stays in memory, and is written once there is room."""
        try:
            self._file.flush()
            self._full = False
        except OSError as error:
            if not self._full:
                _warn(f"{self._file.name} cannot be written: {refused(error, self._file.name)}")
            self._full = True

    def close(self) -> None:
        self._flush()
        with contextlib.suppress(OSError):  # told already
            self._file.close()
        if self._board and _is_writing(self._board):
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def _tensorboard(folder: Path, start: int) -> SummaryWriter | None:
    try:
        return SummaryWriter(str(folder), purge_step=start + 1, max_queue=_QUEUE, flush_secs=10)
    except OSError as error:
        _warn(f"TensorBoard gets nothing: {folder} cannot be written: {refused(error, str(folder))}")
        return None


def _is_writing(board: SummaryWriter) -> bool:
    """Whether its thread is alive. It dies of a full disk, and then whoever has more for it waits for ever."""
    return _events(board)._worker.is_alive()


def _events(board: SummaryWriter) -> EventFileWriter:
    return board._get_file_writer().event_writer


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def check_client(project: str | None) -> None:
    """Raises UserError where Weights & Biases is asked for and not installed."""
    if project:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise UserError(f"training.wandb = {project!r} needs Weights & Biases: pip install wandb") from None


def _weights_and_biases(project: str, folder: Path):
    check_client(project)
    import wandb

    return wandb.init(project=project, name=folder.name, id=folder.name, dir=str(folder), resume="allow")
