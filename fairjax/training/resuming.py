"""By what configurations a run may be gone on with: those whose steps compute what its own do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fairjax.config import Experiment
from fairjax.schema import Section

_MAY_CHANGE = ("steps", "microbatch", "max_skipped", "save_every", "keep", "keep_every", "images_every", "wandb")
"""Fields of `training` that may differ when a run is resumed: they do not change what its steps compute."""


def differences(old: Experiment, new: Experiment, later: Collection[str] = ()) -> list[str]:
    """What a run of `new` would do otherwise than one of `old` that it goes on with, a line for each field.

    Args:
        later: what `unsaid` gives of `old`. Whatever `new` says there, the run may not have done so.
    """
    before, after = _flat(old), _flat(new)
    kept = {"output"} | {f"training.{name}" for name in _MAY_CHANGE}  # a run folder may be moved
    lines = []
    for name in before:
        if name in kept or name.startswith("validation."):  # which looks, and changes nothing
            continue
        if name in later:
            lines.append(f"{name} = {after[name]!r}, but the run is of a version without it")
        elif before[name] != after[name]:
            lines.append(f"{name} = {after[name]!r}, but the run has {before[name]!r}")
    return lines


def unsaid(section: Section, prefix: str = "") -> list[str]:
    """Dotted names of the fields that the file of a configuration does not name.

    A run writes down all that there are, so that these are of a later version than the run.
    """
    names = []
    for name, value in section:
        if isinstance(value, Section):
            names += unsaid(value, f"{prefix}{name}.")
        elif name not in section.model_fields_set:
            names.append(prefix + name)
    return names


def _flat(section: Section, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of the fields of a section and of the sections in it."""
    flat: dict[str, Any] = {}
    for name, value in section:
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Section) else {prefix + name: value}
    return flat
