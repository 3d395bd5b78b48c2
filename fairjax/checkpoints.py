"""Saving the state of long work with orbax, so that it can be killed at any moment and go on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from fairjax import files, parallel

State = Any
"""A pytree of arrays."""

SUMS = "sha256.json"
"""In each checkpoint's folder: the SHA-256 of every file in it, by path. It is written last."""

DAMAGED = "damaged"
"""Where checkpoints go that are not what was written."""


class Unsaved(OSError):
    """A checkpoint that could not be written, and why, in one line. Those before it are as they were."""


class Checkpoints:
    """The checkpoints of one piece of work, in one folder.

    A checkpoint is written beside the old one and renamed when it is whole: a kill while saving loses
    nothing but the steps since the last one. The newest that is found is read through once; where its files are not
    those that were written, it is named on standard error and put aside into `damaged`, and the one before it serves.

    Args:
        keep: how many of the newest stay.
        keep_every: those of steps that this divides stay, too.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None):
        if parallel.is_first():
            _put_damaged_aside(folder)
        parallel.wait_for_all("checkpoints read through")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, enable_async_checkpointing=False
        )  # fmt: skip
        handler = ocp.StandardCheckpointHandler()  # named, so that metadata can be read before anything is saved
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handler)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Saves `state` as that of `step`.

        Raises:
            Unsaved: the disk would not take it.
            ValueError: there is a checkpoint of this step already.
        """
        folder = Path(self._manager.directory)
        try:
            if not self._manager.save(step, args=ocp.args.StandardSave(state)):
                raise ValueError(f"checkpoint {step} exists already in {folder}")
            if parallel.is_first():  # which waits until every host has written its part
                _seal(folder / str(step))
        except (OSError, ValueError) as error:
            reason = _of_the_system(error)
            if reason is None:
                raise
            for unfinished in folder.glob(f"{step}*"):  # of a full disk it is what fills it
                if not (unfinished / SUMS).is_file() and unfinished.name.partition(".")[0] == str(step):
                    shutil.rmtree(unfinished, ignore_errors=True)
            self._manager.reload()
            raise Unsaved(f"checkpoint {step} could not be saved in {folder}: {reason}") from error

    def restore(self, step: int, like: State) -> State:
        """Reads a checkpoint onto the structure, shapes, dtypes and shardings of `like`, once checked."""
        self.check(step, like)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def check(self, step: int, like: State) -> None:
        """Raises a one-line ValueError where a checkpoint has other arrays than `like`, which may be abstract."""
        saved, wanted = _shapes(self._manager.item_metadata(step).tree), _shapes(like)
        differing = sorted(name for name in saved | wanted if saved.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            more = f" (and {len(differing) - 1} more arrays differ)" if len(differing) > 1 else ""
            raise ValueError(
                f"checkpoint {step} in {self._manager.directory} does not fit: "
                f"{name} is {saved.get(name, 'absent')} in it, should be {wanted.get(name, 'absent')}{more}"
            )

    def close(self) -> None:
        self._manager.close()


def _of_the_system(error: Exception) -> str | None:
    """What the system refused, None where it was something else; orbax tells its code in the text of a ValueError."""
    told = re.search(r"os_error_code='(\d+)'", str(error))
    code = int(told[1]) if told else getattr(error, "errno", None)
    return os.strerror(code).lower() if code else None


def _seal(checkpoint: Path) -> None:
    files.write_text(checkpoint / SUMS, json.dumps(_sums(checkpoint), indent=1))


def _sums(checkpoint: Path) -> dict[str, str]:
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(SUMS))
    sums = {}
    for path in paths:
        with path.open("rb") as file:
            sums[path.relative_to(checkpoint).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _put_damaged_aside(folder: Path) -> None:
    """From the newest on, until one is what was written: only that one will be read."""
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    for step in sorted(steps, reverse=True):
        checkpoint = folder / str(step)
        problem = _problem(checkpoint)
        if problem is None:
            return
        (folder / DAMAGED).mkdir(exist_ok=True)
        aside = folder / DAMAGED / f"{step}-{len(list((folder / DAMAGED).iterdir()))}"
        checkpoint.rename(aside)
        print(f"warning: checkpoint {step} {problem}: put aside as {aside}", file=sys.stderr, flush=True)


def _problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where they are those that were written."""
    try:
        wanted = json.loads((checkpoint / SUMS).read_text())
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError):
        return f"has an unreadable {SUMS}"
    found = _sums(checkpoint)
    differing = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if not differing:
        return None
    how = "is missing" if differing[0] not in found else "is not as it was written"
    more = f" ({len(differing) - 1} more are damaged)" if len(differing) > 1 else ""
    return f"is damaged: {differing[0]} {how}{more}"


def _shapes(tree: State) -> dict[str, tuple[int, ...]]:
    """Shapes by dotted name: orbax' metadata has dicts and lists where the state has tuples of its own kinds."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
