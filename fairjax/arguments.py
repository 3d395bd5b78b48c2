"""What people give to functions from Python, checked where it comes in: one line says what would be right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises TypeError or ValueError unless `value` is a whole number from `least` (to `most`)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} = {value!r} must be a whole number")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name} = {value} must be " + (f"from {least} to {most}" if most else f"at least {least}"))


def scale(name: str, value: Any) -> None:
    """Raises TypeError or ValueError unless `value` is a finite number from 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} = {value!r} must be a number")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} = {value} must be a number from 0")


def texts(name: str, value: Sequence[str]) -> None:
    """Raises TypeError unless `value` is a sequence of texts, rather than one, or some in no order."""
    if isinstance(value, str):
        raise TypeError(f"{name} is one text: give a list of them, [{value!r}]")
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise TypeError(f"{name} is a {type(value).__name__}: give a list of texts")
    for place, text in enumerate(value):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{place}] = {text!r} must be text")


def given(name: str, value: Any, kind: type) -> None:
    """Raises TypeError unless `value` is of one of the classes that `fairjax` exports."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}: it must be a fairjax.{kind.__name__}")


def pictures(name: str, value: np.ndarray) -> None:
    """Raises TypeError or ValueError unless `value` are images uint8 [p, n, H, W, 3], some."""
    wanted = "must be uint8 [prompts, images of each, height, width, 3], as Pipeline.generate gives them"
    if getattr(value, "dtype", None) != np.uint8:
        raise TypeError(f"{name} are {getattr(value, 'dtype', type(value).__name__)}: they {wanted}")
    if value.ndim != 5 or value.shape[-1] != 3 or not value.size:
        raise ValueError(f"{name} are {list(value.shape)}: they {wanted}")
