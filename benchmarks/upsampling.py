"""Doubling an image by nearest neighbour and convolving it: as it is written, and in both of fairjax's ways.

    python -m benchmarks.upsampling --images 10
    python -m benchmarks.upsampling --model portraits --images 16

How fast forward, and the gradient by the image, and how far apart. The sizes are those of Stable Diffusion 1.5's UNet,
of two prompts an image, and of its decoder, in bfloat16; or those of the embedded world's, in float32.
"""

from __future__ import annotations

import argparse
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax
from rich.console import Console
from rich.table import Table

from benchmarks.attention import milliseconds, relative
from fairjax.models import layers

SIZES = {
    "sd15": ((2, 8, 1280), (2, 16, 1280), (2, 32, 640), (1, 64, 512), (1, 128, 512), (1, 256, 256)),
    "portraits": ((1, 4, 128), (1, 8, 64), (1, 16, 64), (1, 32, 32)),
}
"""By model: rows of an image, side of the small image, channels."""

_NAMES = ("NHWC", "HWIO", "NHWC")


def usual(x: jax.Array, kernel: jax.Array) -> jax.Array:
    large = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return lax.conv_general_dilated(large, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NAMES)


def chosen(platform: str):
    def way(x: jax.Array, kernel: jax.Array) -> jax.Array:
        with mock.patch.object(layers, "device", lambda: (platform, platform)):
            return layers.convolve_doubled(x, kernel)

    return way


WAYS = {"usual": usual, "as on accelerators": chosen("gpu"), "as on CPUs": chosen("cpu")}


def gradient(way):
    """By the image, as of a kernel that stays as it is."""
    return lambda x, kernel, g: jax.vjp(lambda x: way(x, kernel), x)[1](g)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="sd15")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10, help="the median of so many runs counts")
    options = parser.parse_args()
    dtype = jnp.dtype("bfloat16" if options.model == "sd15" else "float32")
    table = Table(title=f"{options.images} images on {jax.devices()[0].device_kind}, milliseconds, {dtype}")
    for name in ("small image", "way", "forward", "gradient", "from usual"):
        table.add_column(name, justify="left" if name in ("small image", "way") else "right")
    for rows, side, channels in SIZES[options.model]:
        keys, small = jax.random.split(jax.random.key(0), 3), (rows * options.images, side, side, channels)
        large = (small[0], 2 * side, 2 * side, channels)
        x, g = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys[:2], (small, large), strict=True))
        kernel = (jax.random.normal(keys[2], (3, 3, channels, channels)) / (9 * channels) ** 0.5).astype(dtype)
        exact = usual(x, kernel)
        for name, way in WAYS.items():
            apart = relative(way(x, kernel), exact)
            forward = milliseconds(jax.jit(way), (x, kernel), options.repeats)
            back = milliseconds(jax.jit(gradient(way)), (x, kernel, g), options.repeats)
            shown = f"{rows} x {side} x {side} x {channels}"
            table.add_row(shown, name, f"{forward:.2f}", f"{back:.2f}", f"{apart:.1e}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
