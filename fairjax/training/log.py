"""What a run writes down as it goes: `log.jsonl`, TensorBoard, and Weights & Biases where it is asked for."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from fairjax import files
from fairjax.schema import UserError
from fairjax.training.finetuning import Progress


class Log:
    """`log.jsonl` of a run folder, and the same scalars for TensorBoard. A resumed run continues both.

    Args:
        start: how many steps the checkpoint has that the run goes on from; what is later is dropped.
        wandb: a Weights & Biases project that gets the same, as the run of the folder's name.

    Raises:
        UserError: Weights & Biases is asked for and not installed.
    """

    def __init__(self, folder: Path, start: int, wandb: str | None = None):
        self._wandb = _weights_and_biases(wandb, folder) if wandb else None
        path = folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        files.write_text(path, "".join(line for line in lines if _step(line) <= start))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, flush_secs=10)
        self._since = time.monotonic()

    def __call__(self, progress: Progress, images: np.ndarray | None) -> float:
        """Writes one step, with its images if there are any; returns the seconds since the last."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        row = {"step": progress.step, "seconds": round(seconds, 3)} | progress.scalars
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for name, value in progress.scalars.items():
            self._board.add_scalar(name, value, progress.step)
        if self._wandb:
            self._wandb.log(progress.scalars, step=progress.step)
        if images is not None:
            rows = np.concatenate([np.concatenate(list(row), axis=1) for row in images], axis=0)
            self._board.add_image("images", rows, progress.step, dataformats="HWC")
            if self._wandb:
                import wandb

                self._wandb.log({"images": wandb.Image(rows)}, step=progress.step)
        return seconds

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


def _step(line: str) -> float:
    """The step that a line of `log.jsonl` tells of; a kill may have cut the last line short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


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
