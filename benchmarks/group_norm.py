"""Group normalisation of images: ours against Flax's, in one run.

    python -m benchmarks.group_norm --side 64 --channels 16

Both are followed by SiLU, as in every residual block, forward alone and forward with backward.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.layers import GroupNorm


def seconds(function, *arguments, repeats):
    run = jax.jit(function).lower(*arguments).compile()
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10, help="the fastest of this many runs counts")
    options = parser.parse_args()

    shape = (options.images, options.side, options.side, options.channels)
    x = jax.random.normal(jax.random.key(0), shape)
    ours = GroupNorm(options.channels, options.groups, 1e-5, rngs=nnx.Rngs(0))
    flax = {
        name: nnx.GroupNorm(options.channels, options.groups, epsilon=1e-5, use_fast_variance=fast, rngs=nnx.Rngs(0))
        for name, fast in (("as it is", True), ("with a variance as exact as ours", False))
    }
    print(f"{shape}, {options.groups} groups, on {jax.devices()[0].device_kind}")
    for name, norm in flax.items():
        print(f"largest difference to flax {name}: {jnp.abs(ours(x) - norm(x)).max():.1e}")

    def forward(norm):
        return lambda x: jax.nn.silu(norm(x))

    def both(norm):
        return lambda x: jax.vjp(forward(norm), x)[1](x)[0]

    for name, make in (("forward", forward), ("forward and backward", both)):
        mine = seconds(make(ours), x, repeats=options.repeats)
        for which, norm in flax.items():
            theirs = seconds(make(norm), x, repeats=options.repeats)
            told = f"flax {which} {1e3 * theirs:.2f} ms, fairjax {1e3 * mine:.2f} ms, ratio {mine / theirs:.2f}"
            print(f"{name}: {told}")


if __name__ == "__main__":
    main()
