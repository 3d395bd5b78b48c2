"""Compiles training and evaluation for TPUs that are not there, and says whether they fit them.

    python -m benchmarks.tpu --topology v5e:16x16 --config configs/sd15/exp1-gender-both.yaml

The `libtpu` package (pip install '.[tpu]') compiles for a named topology on any machine. The training step of an
experiment, and the program that makes the images of its evaluation, are compiled at Stable Diffusion 1.5's true size,
with shapes for weights, for one prompt of as many images as the experiment has, or the next multiple of the chips.
Printed: the time to compile, memory on a chip, FLOPs, bytes and seconds as the compiler counts them (each loop's body
once), and what crosses chips; last a line of Markdown for each program.

Compiled is with little optimisation, which takes a tenth of the time, and as much memory as the usual within a percent
(benchmarks/RESULTS.md); `--effort` asks for more.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of this process; what is compiled for is the topology

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from benchmarks import full_size
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.schema import load
from fairjax.training import step as steps

_COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "s8": 1, "u8": 1}
_TITLES = (
    "experiment", "program", "chips", "images of a chip", "GiB of models and state", "while it runs", "together", "of",
    "compiled in", "crosses chips",
)  # fmt: skip


class Compiled(NamedTuple):
    """What is known of a program that was compiled."""

    seconds: float  # to compile
    arguments: int  # bytes on a chip: models and state
    temporary: int  # bytes on a chip while it runs
    flops: float
    bytes_accessed: float
    estimate: float | None  # seconds; None where the compiler tells none
    collectives: dict[str, tuple[int, int]] | None  # kind -> how many, bytes of their results; None if not to be read


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """How many of each kind an optimised program has, and the bytes of their results together.

    What starts one and does not wait for it has what is sent and what arrives, in this order, and flags, which are
    scalars, in its result; an all-reduce alone only what arrives.
    """
    found: dict[str, tuple[int, int]] = {}
    for result, kind, start in re.findall(rf"= (\(?[^=\n]*?) ({_COLLECTIVES})(-start)?\(", program):
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        if start and kind != "all-reduce":
            arrays = [shape for shape in shapes if shape != ("u32", "")]
            shapes = arrays[len(arrays) // 2 :]
        size = sum(
            _BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(",") if n])) for dtype, dims in shapes
        )
        count, total = found.get(kind, (0, 0))
        found[kind] = count + 1, total + size
    return found


def compiled(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program, and asks what it takes."""
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    memory, cost = program.memory_analysis(), program.cost_analysis()
    try:
        crossing = collectives(program.as_text())
    except JaxRuntimeError:  # what a later libtpu than this jax's makes is not always to be read
        crossing = None
    return Compiled(
        seconds, memory.argument_size_in_bytes, memory.temp_size_in_bytes, cost["flops"], cost["bytes accessed"],
        cost.get("optimal_seconds"), crossing,
    )  # fmt: skip


def for_chips(config: Experiment, chips: int, each: int) -> Experiment:
    """The experiment with `each` images of its one prompt on every chip."""
    training = config.training.model_copy(update={"images_per_prompt": chips * each, "prompts_per_step": 1})
    return config.model_copy(update={"training": training})


def lowered(name: str, config: Experiment, mesh: jax.sharding.Mesh, each: int) -> jax.stages.Lowered:
    """The program of that name, with `each` images on every chip."""
    if name == "evaluation":
        return full_size.generation(config, mesh, each)
    traced = full_size.training_step(config)
    arguments = parallel.shapes((traced.state, traced.frozen, traced.batch), mesh)
    return steps.program(traced.step, mesh).lower(*arguments)


def tell(result: Compiled, limit: int) -> None:
    """Prints what is known of a program for chips with so many bytes."""
    memory = result.arguments + result.temporary
    print(f"compiled in {result.seconds:.0f} s")
    print(f"memory of a chip: {result.arguments / 2**30:.2f} GiB of models and state + "
          f"{result.temporary / 2**30:.2f} while it runs = {memory / 2**30:.2f} GiB of {limit / 2**30:.0f}: "
          f"{'fits' if memory < limit else 'does not fit'}")  # fmt: skip
    estimate = "no estimate of its time" if result.estimate is None else f"{result.estimate:.2g} s"
    print(f"counted by the compiler, once in each loop: {result.flops:.3g} FLOPs, {result.bytes_accessed:.3g} bytes of "
          f"memory traffic, {estimate}")  # fmt: skip
    if result.collectives is None:
        print("what crosses chips is not known: this jax cannot read all that this libtpu compiles")
    for kind, (count, size) in sorted((result.collectives or {}).items()):
        print(f"{count} x {kind}: {size / 2**10:.1f} KiB")
    print(flush=True)


def row(result: Compiled, limit: int, *first: str) -> str:
    """The same as a line of a Markdown table."""
    memory = (result.arguments, result.temporary, result.arguments + result.temporary, limit)
    crossing = [f"{n} {kind} {size / 2**10:,.1f} KiB" for kind, (n, size) in sorted((result.collectives or {}).items())]
    told = (f"{result.seconds:.0f} s", "not known" if result.collectives is None else ", ".join(crossing) or "none")
    return f"| {' | '.join((*first, *(f'{size / 2**30:.2f}' for size in memory), *told))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", nargs="+", default=["v5e:4x4"], help="generation and grid of chips: v5e:16x16")
    parser.add_argument("--config", nargs="+", default=["configs/sd15/exp4-gender-race-age-both.yaml"])
    parser.add_argument("--program", nargs="+", choices=("training", "evaluation"), default=["training", "evaluation"])
    parser.add_argument("--images", type=int, help="on each chip (default: the experiment's, shared out)")
    parser.add_argument("--microbatch", type=int, default=1, help="images that a chip sees at a time (default: 1)")
    parser.add_argument(
        "--effort", choices=("O0", "O1", "O2", "O3"), default="O0", help="of the compiler (default: O0)"
    )
    options = parser.parse_args()
    jax.config.update("jax_optimization_level", options.effort)  # as `parallel.hastily` does for a --dry-run
    jax.config.update("jax_enable_compilation_cache", False)
    fields, rows = {"training.microbatch": options.microbatch}, []
    for topology in options.topology:
        try:
            mesh = parallel.mesh_of(topology)
        except ValueError as error:
            raise SystemExit(f"--topology: {error}") from None
        limit = parallel.memory_left(mesh)
        for path in options.config:
            config = load(Experiment, Path(path), fields)
            each = options.images or -(-config.training.images_per_prompt // mesh.size)
            config = for_chips(config, mesh.size, each)
            for name in options.program:
                print(f"{name} of {Path(path).stem} on {mesh.size} chips ({topology}), {each} images a chip, "
                      f"{config.training.precision}, microbatch {config.training.microbatch}")  # fmt: skip
                try:
                    result = compiled(lowered(name, config, mesh, each))
                except JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    print(f"does not fit: {str(error).splitlines()[0]}\n", flush=True)
                    continue
                tell(result, limit)
                rows.append(row(result, limit, Path(path).stem, name, topology, str(each)))
    print("| " + " | ".join(_TITLES) + " |", "| --- " * len(_TITLES) + "|", *rows, sep="\n")


if __name__ == "__main__":
    main()
