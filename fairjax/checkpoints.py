"""Saving the state of long work with orbax, so that it can be killed at any moment and go on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fairjax import files, parallel
from fairjax.files import SUMS
from fairjax.program import legible

State = Any
"""A pytree of arrays."""

DAMAGED = "damaged"
"""Where checkpoints go that are not what was written."""

_DISCARDED = ".discarded"

_LOOKS = (0, 0.1, 0.4)
"""Seconds before each look for what is left of a checkpoint that failed: orbax may still write when it says so."""


class Unsaved(OSError):
    """A checkpoint that could not be written, and why, in one line. Those before it are as they were."""


class Checkpoints:
    """The checkpoints of one piece of work, in one folder.

    Of several hosts each has the whole state, so that the first writes it, and each reads it for itself: none waits for
    another's disk, and what the first could not write it tells the others, who raise the same.

    A checkpoint is written beside the old ones, while the work goes on, and renamed and sealed when it is whole: a kill
    while saving loses nothing but the steps since the last one. The newest that is found is read through once; where
    its files are not those that were written, it is named on standard error and put aside into `damaged`, and the one
    before it serves.

    Args:
        keep: how many of the newest stay.
        keep_every: those of steps that this divides stay, too.

    Attributes:
        best: the step of one that stays, too; None for none.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None):
        problem = None
        if parallel.is_first():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _put_damaged_aside(folder)
            except OSError as error:
                if not parallel.has_others():
                    raise
                problem = str(error)
        if problem := parallel.told_by_first(problem):
            raise OSError(problem)
        self.best: int | None = None
        self._folder, self._keep, self._keep_every = folder.resolve(), keep, keep_every
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._saving: tuple[int, Future[None] | None] | None = None
        self._saved: list[int] = []  # by this object, the newest; the first host may be a moment late to seal it
        self._open()

    def _open(self) -> None:
        # in the background, orbax' threads wait for a directory that a full disk does not make, for twenty minutes
        here = ocp.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(
            create=False, max_to_keep=None, enable_async_checkpointing=True, async_options=here,
            multiprocessing_options=_alone(),
        )  # fmt: skip
        handler = ocp.StandardCheckpointHandler()  # named, so that metadata can be read before anything is saved
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handler)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        return max([*self._whole(), *self._saved], default=None)

    def lost(self) -> bool:
        """Whether some were finished, and none of them is what was written."""
        return self.latest() is None and any(map(_sealed, (self._folder / DAMAGED).glob("*")))

    def _whole(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal() and _sealed(path))

    def save(self, step: int, state: State) -> None:
        """Begins to save `state`, which may change once this returns, as that of `step`.

        Raises:
            Unsaved: the disk would not take it; or the one before, and then this one is not begun.
            ValueError: there is a checkpoint of this step already.
        """
        self.finish()
        writing, problem = None, None
        if parallel.is_first():
            try:
                if not self._manager.save(step, args=ocp.args.StandardSave(_here(state))):
                    raise ValueError(f"checkpoint {step} exists already in {self._folder}")
                writing = self._writer.submit(self._complete, step)
            except (OSError, ValueError) as error:
                problem = self._unsaved(step, error)
        self._tell(problem)
        self._saving = step, writing

    def finish(self) -> None:
        """Waits until what was begun is whole; raises Unsaved where the disk would not take it."""
        if self._saving is None:
            return
        (step, writing), self._saving, problem = self._saving, None, None
        if writing:
            try:
                writing.result()
            except (OSError, ValueError) as error:
                problem = self._unsaved(step, error)
        self._tell(problem)
        self._saved = [step]

    def _tell(self, problem: Unsaved | None) -> None:
        """Raises on every host what the first could not do."""
        message = parallel.told_by_first(problem and str(problem))
        if message:
            raise problem or Unsaved(message)

    def _complete(self, step: int) -> None:
        """Waits until it is written, seals it, and lets go of those that need not stay."""
        self._manager.wait_until_finished()
        _seal(self._folder / str(step))
        whole = self._whole()
        by_number = (n for n in whole if self._keep_every and not n % self._keep_every)
        stay = {*whole[-self._keep :], self.best, *by_number}
        for old in (self._folder / str(n) for n in whole if n not in stay):
            old.rename(old.with_suffix(_DISCARDED))  # first: what is half deleted is no checkpoint
        for discarded in self._folder.glob(f"*{_DISCARDED}"):  # also those of a program that was killed while here
            shutil.rmtree(discarded)

    def _unsaved(self, step: int, error: OSError | ValueError) -> Unsaved:
        """What to raise, with nothing left of the checkpoint; raises the error itself where it is no disk's fault."""
        reason = _of_the_system(error)
        if reason is None:
            raise error
        with contextlib.suppress(OSError, ValueError):  # it tells of the same error again
            self._manager.close()
        for pause in _LOOKS:
            time.sleep(pause)
            for unfinished in self._folder.glob(f"{step}*"):  # of a full disk it is what fills it
                if not _sealed(unfinished) and unfinished.name.partition(".")[0] == str(step):
                    shutil.rmtree(unfinished, ignore_errors=True)
        self._open()
        return Unsaved(f"checkpoint {step} could not be saved in {self._folder}: {reason}")

    def restore(self, step: int, like: State) -> State:
        """Reads a checkpoint onto the structure, shapes, dtypes and shardings of `like`, once checked."""
        self.check(step, like)
        alone = not parallel.has_others()

        def onto(leaf: Any) -> Any:  # of several hosts by way of each's memory: orbax would have them wait
            if alone and not isinstance(leaf, np.ndarray | np.generic):
                return ocp.utils.to_shape_dtype_struct(leaf)
            return np.empty(leaf.shape, leaf.dtype)

        read = self._manager.restore(step, args=ocp.args.StandardRestore(jax.tree.map(onto, like)))
        return read if alone else jax.tree.map(parallel.as_placed, read, like)

    def check(self, step: int, like: State) -> None:
        """Raises a one-line ValueError where a checkpoint has other arrays than `like`, which may be abstract."""
        saved, wanted = _shapes(self._manager.item_metadata(step).tree), _shapes(like)
        differing = sorted(name for name in saved | wanted if saved.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            more = f" (and {len(differing) - 1} more arrays differ)" if len(differing) > 1 else ""
            raise ValueError(
                f"checkpoint {step} in {self._folder} does not fit: "
                f"{name} is {saved.get(name, 'absent')} in it, should be {wanted.get(name, 'absent')}{more}"
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Closes it; after an error, which may be this host's alone, without a word with the others."""
        if kind is None:
            self.close()
            return
        self._writer.shutdown()  # once what is under way is written
        with contextlib.suppress(OSError, ValueError):
            step, writing = self._saving or (0, None)
            if writing and (failed := writing.exception()):
                print(f"warning: {self._unsaved(step, failed)}", file=sys.stderr, flush=True)
            self._manager.close()

    def close(self) -> None:
        """Waits for what is under way; raises Unsaved where the disk would not take it."""
        try:
            self.finish()
        finally:
            self._writer.shutdown()
            self._manager.close()


def _alone() -> ocp.options.MultiprocessingOptions:
    """Of several hosts each has an orbax of its own, which waits for no other's."""
    if not parallel.has_others():
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host-{me}"
    )


def _here(state: State) -> State:
    """What orbax may write without the other hosts."""
    return state if not parallel.has_others() else jax.tree.map(parallel.fetch, state)


def _of_the_system(error: Exception) -> str | None:
    """What the system refused, None where it was something else; orbax tells its code in the text of a ValueError."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    code = int(found[1]) if found else getattr(error, "errno", None)
    return os.strerror(code).lower() if code else None


def _sealed(checkpoint: Path) -> bool:
    return (checkpoint / SUMS).is_file()


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
        told = legible(f"checkpoint {step} {problem}: put aside as {aside}")
        print(f"warning: {told}", file=sys.stderr, flush=True)


def _problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where they are those that were written."""
    try:
        wanted = files.read_json(checkpoint / SUMS)
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
