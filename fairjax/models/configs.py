"""Reading the `config.json` of a PyTorch network: what changes the computation is honoured or refused by name."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import pydantic

from fairjax.schema_errors import requirements, shown

Config = TypeVar("Config")
Value = TypeVar("Value")

_MOST = {  # Where a network is built in a loop, or an array made that no file has, a number in a file is not the cost
    "num_hidden_layers": 200, "layers_per_block": 200, "transformer_layers_per_block": 200,
    "num_train_timesteps": 100_000, "sample_size": 1_024, "image_size": 8_192,
}  # fmt: skip
_MOST_ELSEWHERE = 2**24
_MOST_ITEMS = {"rows": 200, "block_out_channels": 16}
_FROM_ZERO = ("steps_offset", "eos_token_id", "downsample_padding", "rows_are_labels")


def read_config(
    cls: type[Config], fields: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]], where: str | None = None
) -> Config:
    """Builds the config dataclass `cls` from the `fields` of a config.json.

    Fields that `cls` has are taken; fields in `only` must hold one of the listed values, because this
    implementation computes nothing else; any other field does not change the computation and is left alone.

    Args:
        where: what an error begins with, by default the name of `cls`.

    Raises:
        ValueError: one line naming the field, its value and what is supported.
    """
    kinds, where = _kinds(cls), where or cls.__name__
    for name, supported in only.items():
        if name in fields and fields[name] not in supported:
            allowed = " or ".join(repr(value) for value in supported)
            raise ValueError(f"{where}: {name} = {fields[name]!r} is not supported; it must be {allowed}")
    taken = {name: typed(kinds[name], value, name, where) for name, value in fields.items() if name in kinds}
    if missing := sorted(name for name in _needed(cls) if name not in taken):
        raise ValueError(f"{where}: {missing[0]} is missing")
    return cls(**taken)


def typed(kind: type[Value], value: Any, name: str, where: str) -> Value:
    """`value`, where it is of a type (an annotation) and its numbers and lists are of a size that makes sense.

    Raises:
        ValueError: one line naming where it is, its name, and what is wrong.
    """
    try:
        found = _adapter(kind).validate_python(as_tuples(value))
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {name} = {shown(value)} {requirements(error)}") from None
    least, most = 0 if name in _FROM_ZERO else 1, _MOST.get(name, _MOST_ELSEWHERE)
    if isinstance(found, tuple) and len(found) > _MOST_ITEMS.get(name, len(found)):
        raise ValueError(f"{where}: {name} has {len(found)} items; it must have {_MOST_ITEMS[name]} at most")
    for part in _parts(found):
        if isinstance(part, int | float) and not isinstance(part, bool):
            if part < 0 or isinstance(part, int) and not least <= part <= most:
                raise ValueError(f"{where}: {name} = {shown(value)} must be between {least} and {most}")
    return found


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _needed(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(strict=True, allow_inf_nan=False))


def _parts(value: Any) -> Iterator[Any]:
    """A value and all that is in it."""
    yield value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    for item in inside:
        yield from _parts(item)


def divides(divisor: int, number: int, names: tuple[str, str], where: str) -> None:
    """Raises a one-line ValueError where `number` is no multiple of `divisor`."""
    if number % divisor:
        raise ValueError(f"{where}: {names[0]} = {divisor} must divide {names[1]} = {number}")


def per_block(value: Any, blocks: int, name: str) -> tuple[Any, ...]:
    """A field that diffusers allows to be one value, or one value per block."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * blocks
    if len(values) != blocks:
        raise ValueError(f"{name} = {value!r} must be one value or one for each of the {blocks} blocks")
    return values


def as_tuples(value: Any) -> Any:
    """A value of JSON with tuples for its lists, which can be hashed."""
    if isinstance(value, dict):
        return {name: as_tuples(item) for name, item in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
