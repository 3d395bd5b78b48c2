"""Enlarging an image twofold by nearest neighbour and convolving it, in three ways: how fast, and how far apart.

    python -m benchmarks.upsampling --images 10

Of a pixel's nine products, several have the same pixel of the small image: their weights can be added first, which
leaves four. "at once" asks for that as the transpose of a convolution of 4 x 4 with a stride of 2; "by place" as one of
2 x 2 for each of the four places that a pixel of the small image has in the large one. The sizes are those of Stable
Diffusion 1.5's UNet, of two prompts an image, and of its decoder, in bfloat16; forward, and the gradient by the image.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
from jax import lax
from rich.console import Console
from rich.table import Table

SIZES = ((2, 8, 1280), (2, 16, 1280), (2, 32, 640), (1, 64, 512), (1, 128, 512), (1, 256, 256))
"""Rows of an image, side of the small image, channels."""

_NAMES = ("NHWC", "HWIO", "NHWC")


def usual(x: jax.Array, kernel: jax.Array) -> jax.Array:
    large = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return lax.conv_general_dilated(large, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NAMES)


def at_once(x: jax.Array, kernel: jax.Array) -> jax.Array:
    wide = sum(jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1))
    turned = wide[::-1, ::-1].swapaxes(2, 3)
    n, height, width, _ = x.shape
    large = jax.ShapeDtypeStruct((n, 2 * height, 2 * width, kernel.shape[3]), x.dtype)

    def smaller(y: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(y, turned, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_NAMES)

    return jax.linear_transpose(smaller, large)(x)[0]  # what GPUs have a kernel for, if asked for so


def by_place(x: jax.Array, kernel: jax.Array) -> jax.Array:
    def joined(kernel: jax.Array, place: int) -> jax.Array:  # of three rows, those that see the same one
        parts = (kernel[:1], kernel[1:].sum(0, keepdims=True)), (kernel[:2].sum(0, keepdims=True), kernel[2:])
        return jnp.concatenate(parts[place])

    def part(row: int, column: int) -> jax.Array:
        own = joined(joined(kernel, row).swapaxes(0, 1), column).swapaxes(0, 1)
        pads = tuple((1 - place, place) for place in (row, column))
        return lax.conv_general_dilated(x, own, (1, 1), pads, dimension_numbers=_NAMES)

    rows = [jnp.stack([part(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    n, height, width, _ = x.shape
    return jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, -1)


WAYS = {"usual": usual, "at once": at_once, "by place": by_place}


def gradient(way):
    """By the image, as of a kernel that stays as it is."""
    return lambda x, kernel, g: jax.vjp(lambda x: way(x, kernel), x)[1](g)[0]


def milliseconds(run, arguments, repeats: int) -> float:
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10, help="the median of so many runs counts")
    options = parser.parse_args()
    table = Table(title=f"{options.images} images on {jax.devices()[0].device_kind}, milliseconds, bfloat16")
    for name in ("small image", "way", "forward", "gradient", "from usual"):
        table.add_column(name, justify="left" if name in ("small image", "way") else "right")
    for rows, side, channels in SIZES:
        keys, small = jax.random.split(jax.random.key(0), 3), (rows * options.images, side, side, channels)
        large = (small[0], 2 * side, 2 * side, channels)
        x, g = (
            jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys[:2], (small, large), strict=True)
        )
        kernel = (jax.random.normal(keys[2], (3, 3, channels, channels)) / (9 * channels) ** 0.5).astype(jnp.bfloat16)
        exact = usual(x, kernel).astype(jnp.float32)
        for name, way in WAYS.items():
            apart = jnp.linalg.norm(way(x, kernel).astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
            forward = milliseconds(jax.jit(way), (x, kernel), options.repeats)
            back = milliseconds(jax.jit(gradient(way)), (x, kernel, g), options.repeats)
            shown = f"{rows} x {side} x {side} x {channels}"
            table.add_row(shown, name, f"{forward:.2f}", f"{back:.2f}", f"{apart:.1e}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
