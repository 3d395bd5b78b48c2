"""Saving the state of long work with orbax, so that it can be killed at any moment and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

State = Any
"""A pytree of arrays."""


class Checkpoints:
    """The checkpoints of one piece of work, in one folder, newest kept.

    A checkpoint is written beside the old one and renamed when it is whole: a kill while saving loses
    nothing but the steps since the last one.
    """

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        handler = ocp.StandardCheckpointHandler()  # named, so that metadata can be read before anything is saved
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handler)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: State) -> None:
        """Saves `state` as that of `step`; saving a step that exists already is an error."""
        if not self._manager.save(step, args=ocp.args.StandardSave(state)):
            raise ValueError(f"checkpoint {step} exists already in {self._manager.directory}")

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


def _shapes(tree: State) -> dict[str, tuple[int, ...]]:
    """Shapes by dotted name: orbax' metadata has dicts and lists where the state has tuples of its own kinds."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
