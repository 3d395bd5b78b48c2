"""Where the time of a step goes on this accelerator: its large networks one by one, at Stable Diffusion 1.5's size.

    python -m benchmarks.parts --images 10 20
    python -m benchmarks.parts --images 10 --parts 0 1 --kernels 20

A whole step takes minutes to compile; each part is compiled alone here, with random weights and nothing on disk. FLOPs
are XLA's count of the part as it is written (attention is counted in it, whatever kernel computes it). What its kernels
take is by JAX's profiler, in one run; `benchmarks.roofline` says what they could.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks import full_size
from fairjax import parallel
from fairjax.adapters import bundle as bundles
from fairjax.diffusion.guidance import Conditioning, guided

GUIDANCE_SCALE, RANK = 7.5, 50


class Part(NamedTuple):
    name: str
    make: Callable[[str], Callable[..., Any]]  # in a type of numbers
    arguments: Callable[[int], tuple[Any, ...]]  # shapes for so many images


def parts() -> Iterator[Part]:
    compact = full_size.pipeline(dtype="bfloat16").params
    unet, vae = (full_size.typed(compact[name], jnp.bfloat16) for name in ("unet", "vae"))
    adapters = jax.eval_shape(lambda: bundles.init(("unet",), compact, RANK, 0, jax.random.key(0)))
    height, width = full_size.pipeline().image_size

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def latents(n: int) -> jax.ShapeDtypeStruct:
        return array(n, *full_size.pipeline().latent_shape)

    def predict(dtype: str):
        denoise = guided(full_size.pipeline(dtype=dtype).unet.apply, GUIDANCE_SCALE)
        return lambda weights, x, words: denoise(weights, x, jnp.ones(len(x)), Conditioning(words, words))

    def gradient(dtype: str):
        denoise = predict(dtype)

        def pulled(adapters, weights, x, words):
            def merged(adapters, words):
                return denoise(bundles.merge_unet(weights, adapters), x, words)

            return jax.vjp(merged, adapters, words)[1](x)

        return pulled

    def decode(dtype: str):
        return lambda weights, x: full_size.pipeline(dtype=dtype).decode({"vae": weights}, x)

    def decode_back(dtype: str):
        decoding = decode(dtype)
        return lambda weights, x, g: jax.vjp(lambda x: decoding(weights, x), x)[1](g)

    yield Part("UNet, guided", predict, lambda n: (unet, latents(n), array(n, 77, 768)))
    master = jax.eval_shape(lambda params: full_size.pipeline(dtype="bfloat16").compact(params, ("unet",)), compact)[
        "unet"
    ]
    yield Part("its gradient", gradient, lambda n: (adapters, master, latents(n), array(n, 77, 768)))
    yield Part("decoding", decode, lambda n: (vae, latents(n)))
    yield Part("its gradient", decode_back, lambda n: (vae, latents(n), array(n, height, width, 3)))
    for number, name in enumerate(("CLIP ViT-H/14", "DINOv2 ViT-B/14")):

        def meaning(dtype: str, number=number):
            return full_size.judges(dtype).semantics[number].network.apply

        weights = full_size.judges("bfloat16").params["semantics"][number]
        yield Part(name, meaning, lambda n, weights=weights: (weights, array(n, 224, 224, 3)))


def filled(shapes: Any) -> Any:
    """Small random numbers in these shapes, drawn on the device."""

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return (0.02 * jax.random.normal(jax.random.key(0), leaf.shape)).astype(leaf.dtype)

    return jax.jit(lambda: jax.tree.map(draw, shapes))()


def kernels(run: Callable[[], Any]) -> dict[str, list[float]]:
    """Milliseconds of each kernel of a run, by kind: XLA's name for it without its number."""
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        planes = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb")))).planes
        lines = [(plane.name.startswith("/device:GPU"), line) for plane in planes for line in plane.lines]
        for on_gpu, line in lines:
            for event in line.events if not on_gpu or line.name.startswith("Stream") else ():
                name = dict(event.stats).get("hlo_op") or (event.name if on_gpu else None)  # as of a graph of kernels
                if name:
                    found[re.sub(r"(\.\d+|_\d+)+$", "", name)].append(event.duration_ns / 1e6)
    return found


def slowest(title: str, found: dict[str, list[float]], count: int) -> Table:
    """The kinds of kernels that took longest, and all."""
    table = Table(title=title, title_justify="left")
    for name in ("kernels", "number", "ms", "of all"):
        table.add_column(name, justify="left" if name == "kernels" else "right")
    everything = sum(map(sum, found.values()))
    longest = sorted(found.items(), key=lambda row: -sum(row[1]))[:count]
    for kind, took in [*longest, ("all", [each for times in found.values() for each in times])]:
        table.add_row(kind[:60], str(len(took)), f"{sum(took):.2f}", f"{sum(took) / everything:.0%}")
    return table


def main() -> None:
    known = list(parts())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 20], help="at a time")
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many runs counts")
    parser.add_argument("--parts", type=int, nargs="+", choices=range(len(known)), metavar="N",
                        help="; ".join(f"{number}: {part.name}" for number, part in enumerate(known)))  # fmt: skip
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="show the N kinds that take longest, too")
    options = parser.parse_args()
    parallel.prepare()
    table = Table(title=f"on {jax.devices()[0].device_kind}, bfloat16", title_justify="left")
    for name in ("part", "images", "compiled in", "ms", "TFLOP/s", "GiB while it runs"):
        table.add_column(name, justify="left" if name == "part" else "right")
    console = Console(width=100)
    for part in known if options.parts is None else [known[number] for number in options.parts]:
        for images in options.images:
            shapes = part.arguments(images)
            start = time.perf_counter()
            program = jax.jit(part.make("bfloat16")).lower(*shapes).compile()
            compiling = time.perf_counter() - start
            arguments, times = filled(shapes), []
            jax.block_until_ready(program(*arguments))
            for _ in range(options.repeats):
                start = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                times.append(time.perf_counter() - start)
            seconds = statistics.median(times)
            flops = jax.jit(part.make("float32")).lower(*shapes).cost_analysis()["flops"]
            cells = (f"{compiling:.0f} s", f"{1e3 * seconds:.1f}", f"{flops / seconds / 1e12:.0f}")
            taken = program.memory_analysis().temp_size_in_bytes / 2**30
            table.add_row(part.name, str(images), *cells, f"{taken:.1f}")
            console.print(f"{part.name}, {images} images: {', '.join(cells)}", style="dim", highlight=False)
            if options.kernels:
                seen = kernels(lambda program=program, arguments=arguments: program(*arguments))
                console.print(slowest(f"{part.name}, {images} images", seen, options.kernels))
            del arguments, program
    console.print(table)


if __name__ == "__main__":
    main()
