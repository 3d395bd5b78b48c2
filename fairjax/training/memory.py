"""How many images the large networks may see at a time, so that a step fits the memory of a device."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.errors import JaxRuntimeError

MARGIN = 0.95
"""How much of the memory a program may be expected to take: what the compiler counts is not all."""


def fitting(compiled: Callable[[int], jax.stages.Compiled], images: int, limit: int | None) -> int | None:
    """The largest divisor of `images` that fits as the microbatch; None, which is all of them, without a limit.

    Args:
        compiled: the program of a microbatch; asked for as often as there are halvings of the divisors.
        images: of a device.
        limit: bytes of its memory.

    Raises:
        ValueError: one line, where not even one image at a time fits.
    """
    if limit is None:
        return None
    sizes = [size for size in range(1, images + 1) if images % size == 0]
    least, taken = 0, {}
    most = len(sizes)
    while least < most:  # sizes before `least` fit, those from `most` on do not
        middle = (least + most) // 2 if taken else len(sizes) - 1  # all at once is what one hopes for
        taken[middle] = _needed(compiled, sizes[middle])
        least, most = (middle + 1, most) if taken[middle] <= MARGIN * limit else (least, middle)
    if least == 0:
        takes = f"{taken[0] / 2**30:.2f} GiB" if math.isfinite(taken[0]) else "more than all"
        raise ValueError(
            f"a step takes {takes} of a device's memory with one image at a time, of {images}; it has "
            f"{limit / 2**30:.2f} GiB: more devices, training.precision = bfloat16, or a smaller model would fit"
        )
    return sizes[least - 1]


def needed(compiled: jax.stages.Compiled) -> int:
    """Bytes of a device's memory that a program needs."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def _needed(compiled: Callable[[int], jax.stages.Compiled], size: int) -> float:
    """The same; infinite where the compiler refuses it for that."""
    try:
        return needed(compiled(size))
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
