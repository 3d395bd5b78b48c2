"""Attention by the kernel that this accelerator gets, against XLA's own: how far apart, and how fast, in one run.

    python -m benchmarks.attention --images 16

The sizes are those of Stable Diffusion 1.5 at 512 pixels, of CLIP ViT-H/14 and of DINOv2 ViT-B/14, in bfloat16. Errors
are relative to the formula in float32 and to its gradient.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from fairjax.models import attention

SIZES = (
    (4096, 4096, 8, 40), (4096, 77, 8, 40), (1024, 1024, 8, 80), (1024, 77, 8, 80), (256, 256, 8, 160),
    (256, 77, 8, 160), (257, 257, 16, 80), (257, 257, 12, 64),
)  # fmt: skip
"""Queries, keys, heads, channels of a head."""


def relative(ours: jax.Array, exact: jax.Array) -> float:
    ours, exact = (x.astype(jnp.float32).reshape(-1) for x in (ours, exact))
    return float(jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact))


def milliseconds(run, arguments, repeats: int) -> float:
    jax.block_until_ready(run(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def gradients(kernel: attention.Kernel):
    """(cotangent, query, key, value) -> what it is pulled back to."""
    return jax.jit(lambda g, *qkv: jax.vjp(attention.by(kernel), *qkv)[1](g))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10, help="the median of so many runs counts")
    options = parser.parse_args()
    device = jax.devices()[0]
    table = Table(title=f"{options.images} images on {device.device_kind}; XLA's time over the kernel's")
    for name in ("queries x keys x channels", "kernel", "error", "of gradients", "forward", "with backward"):
        table.add_column(name, justify="left" if name[0] in "qk" else "right")
    for queries, keys, heads, channels in SIZES:
        chosen = attention.choose(*attention.device(), jnp.bfloat16, queries, keys, channels)
        drawn = jax.random.split(jax.random.key(0), 4)
        lengths = (queries, keys, keys, queries)
        shapes = [(options.images, length, heads, channels) for length in lengths]
        *qkv, g = (jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(drawn, shapes, strict=True))

        exact = [x[:1].astype(jnp.float32) for x in (g, *qkv)]
        with jax.default_matmul_precision("highest"):
            value = attention.by("xla")(*exact[1:])
            pulled = gradients("xla")(*exact)
        forward = {kernel: jax.jit(attention.by(kernel)) for kernel in ("xla", chosen)}
        apart = relative(forward[chosen](*(x[:1] for x in qkv)), value)
        ours = gradients(chosen)(*(x[:1] for x in (g, *qkv)))
        worst = max(relative(a, b) for a, b in zip(ours, pulled, strict=True))
        ratios = [
            milliseconds(runs["xla"], arguments, options.repeats)
            / milliseconds(runs[chosen], arguments, options.repeats)
            for runs, arguments in (
                (forward, qkv),
                ({kernel: gradients(kernel) for kernel in ("xla", chosen)}, (g, *qkv)),
            )
        ]
        size = f"{queries} x {keys} x {channels}"
        table.add_row(size, chosen, f"{apart:.1e}", f"{worst:.1e}", *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
