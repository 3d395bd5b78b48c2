"""How many images the large networks may see at a time, so that a program fits the memory of a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
from jax.errors import JaxRuntimeError

MARGIN = 0.95
"""How much of the memory a program may be expected to take: what the compiler counts is not all."""


def fitting(
    compiled: Callable[[int], jax.stages.Compiled], sizes: Sequence[int], limit: int | None, what: str
) -> int | None:  # fmt: skip
    """The largest size that fits; None, which is the largest of all, without a limit.

    Args:
        compiled: the program of so many at a time. Compiling is what costs: a large model's takes minutes on a GPU, so
            that sizes are guessed from what others took, about linearly more for more images, and guesses compiled.
        sizes: how many images of a device it may be, ascending from 1.
        limit: bytes of its memory.
        what: the program, in words.

    Raises:
        ValueError: one line, where not even one image at a time fits.
    """
    if limit is None:
        return None
    room = MARGIN * limit
    known, best = {0: 0.0}, None  # bytes, by size
    size: int | None = sizes[-1]  # all at once is what one hopes for
    while size:
        known[size] = _needed_if_compiled(compiled, size)
        best = size if known[size] <= room else best
        failed = min((other for other, taken in known.items() if taken > room), default=sizes[-1] + 1)
        between = [other for other in sizes if (best or 0) < other < failed]
        size = _promising(between, known, room) or (None if best else next(iter(between), None))
    if best is None:
        takes = f"{known[1] / 2**30:.2f} GiB" if math.isfinite(known[1]) else "more than all"
        raise ValueError(
            f"{what} takes {takes} of a device's memory with one image at a time; it has "
            f"{limit / 2**30:.2f} GiB: more devices, training.precision = bfloat16, or a smaller model would fit"
        )
    return best


def _promising(sizes: list[int], known: dict[int, float], room: float) -> int | None:
    """The largest of the sizes that should fit, by a line through the two nearest that are known."""
    if not sizes:
        return None
    nearest = sorted((size for size in known if math.isfinite(known[size])), key=lambda size: abs(size - sizes[-1]))
    if len(nearest) < 2:
        return sizes[len(sizes) // 2]
    (a, b) = nearest[:2]
    slope = (known[a] - known[b]) / (a - b)
    return max((size for size in sizes if known[a] + slope * (size - a) <= room), default=None)


def needed(compiled: jax.stages.Compiled) -> int:
    """Bytes of a device's memory that a program needs: for what it takes, what it computes with, and what it gives."""
    memory = compiled.memory_analysis()
    given = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + given


def _needed_if_compiled(compiled: Callable[[int], jax.stages.Compiled], size: int) -> float:
    """`needed` of the program for `size` images; infinite where the compiler refuses it for want of memory."""
    try:
        return needed(compiled(size))
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
