"""The gradient of convolutions by their images: ours against autodiff's own, in one run.

    python -m benchmarks.convolution

In a loop, as the terms of the chain's gradient are computed, and at the sizes of the embedded world's UNet.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.group_norm import seconds
from fairjax.models.layers import convolve

SIZES = ((16, 96, 32), (16, 64, 32), (16, 32, 32), (8, 192, 64), (8, 128, 128), (4, 256, 128))
"""Side, and channels in and out."""
HOW = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
WAYS = (partial(lax.conv_general_dilated, **HOW), partial(convolve, **HOW))


def gradients(way, kernel, cotangents):
    """Their sum over the images of one shape [loops, n, h, w, d]."""
    shape = (*cotangents.shape[1:4], kernel.shape[2])

    def body(i, total):
        _, pull_back = jax.vjp(lambda x: way(x, kernel, (1, 1), ((1, 1), (1, 1))), jnp.zeros(shape))
        return total + pull_back(cotangents[i])[0]

    return lax.fori_loop(0, len(cotangents), body, jnp.zeros(shape))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--loops", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=10, help="the fastest of this many runs counts")
    options = parser.parse_args()
    print(f"{options.images} images, on {len(jax.devices())} x {jax.devices()[0].device_kind}")
    for side, inputs, outputs in SIZES:
        first, second = jax.random.split(jax.random.key(0))
        kernel = jax.random.normal(first, (3, 3, inputs, outputs))
        cotangents = jax.random.normal(second, (options.loops, options.images, side, side, outputs))
        pulls = [partial(gradients, way) for way in WAYS]
        theirs, mine = (pull(kernel, cotangents) for pull in pulls)
        apart = jnp.abs(theirs - mine).max() / jnp.abs(theirs).max()
        before, after = (seconds(pull, kernel, cotangents, repeats=options.repeats) / options.loops for pull in pulls)
        print(f"{side} x {side}, {inputs} to {outputs} channels: autodiff {1e3 * before:.2f} ms, "
              f"fairjax {1e3 * after:.2f} ms, ratio {after / before:.3f}, {apart:.0e} apart")  # fmt: skip


if __name__ == "__main__":
    main()
