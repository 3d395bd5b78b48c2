"""Reading the `config.json` of a PyTorch network: what changes the computation is honoured or refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


def read_config(cls: type[Config], fields: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]) -> Config:
    """Builds the config dataclass `cls` from the `fields` of a config.json.

    Fields that `cls` has are taken; fields in `only` must hold one of the listed values, because this
    implementation computes nothing else; any other field does not change the computation and is left alone.

    Raises:
        ValueError: one line naming the field, its value and what is supported.
    """
    for name, supported in only.items():
        if name in fields and fields[name] not in supported:
            allowed = " or ".join(repr(value) for value in supported)
            raise ValueError(f"{cls.__name__}: {name} = {fields[name]!r} is not supported; it must be {allowed}")
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: _hashable(value) for name, value in fields.items() if name in names})


def per_block(value: Any, blocks: int, name: str) -> tuple[Any, ...]:
    """A field that diffusers allows to be one value, or one value per block."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * blocks
    if len(values) != blocks:
        raise ValueError(f"{name} = {value!r} must be one value or one for each of the {blocks} blocks")
    return values


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value
