"""Compiles the training step for TPUs that are not there, and says whether it fits them.

    python -m benchmarks.tpu --topology v5e:16x16 --config configs/sd15/exp1-gender-both.yaml

The `libtpu` package (pip install libtpu) compiles for a named topology on any machine. The step of an experiment is
compiled at Stable Diffusion 1.5's true size, with shapes for weights. Printed: the time to compile, memory on a chip,
FLOPs and bytes as the compiler counts them (each loop's body once), and what crosses chips.
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

from benchmarks import full_size
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.schema import load
from fairjax.training import step as steps

_COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "s8": 1, "u8": 1}


class Compiled(NamedTuple):
    """What is known of a program that was compiled."""

    seconds: float  # to compile
    arguments: int  # bytes on a chip: models and state
    temporary: int  # bytes on a chip while it runs
    flops: float
    bytes_accessed: float
    collectives: dict[str, tuple[int, int]]  # kind -> how many, bytes of their results


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """How many of each kind an optimised program has, and the bytes of their results together."""
    found: dict[str, tuple[int, int]] = {}
    for result, kind in re.findall(rf"= (\(?[^=\n]*?) ({_COLLECTIVES})(?:-start)?\(", program):
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
        size = sum(
            _BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(",") if n])) for dtype, dims in shapes
        )
        count, total = found.get(kind, (0, 0))
        found[kind] = count + 1, total + size
    return found


def compile_step(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles the program of a step, and asks what it takes."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        seconds, memory.argument_size_in_bytes, memory.temp_size_in_bytes, cost.get("flops", float("nan")),
        cost.get("bytes accessed", float("nan")), collectives(compiled.as_text()),
    )  # fmt: skip


def for_chips(config: Experiment, chips: int, each: int) -> Experiment:
    """The experiment with `each` images of its one prompt on every chip."""
    training = config.training.model_copy(update={"images_per_prompt": chips * each, "prompts_per_step": 1})
    return config.model_copy(update={"training": training})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4", help="generation and grid of chips, such as v5e:16x16")
    parser.add_argument("--config", default="configs/sd15/exp4-gender-race-age-both.yaml")
    parser.add_argument("--images", type=int, default=1, help="of the prompt on each chip (default: 1)")
    parser.add_argument("--microbatch", type=int, help="(image, step) pairs differentiated at a time")
    options = parser.parse_args()
    try:
        mesh = parallel.mesh_of(options.topology)
    except ValueError as error:
        raise SystemExit(f"--topology: {error}") from None
    fields = {"training.microbatch": options.microbatch} if options.microbatch else {}
    config = for_chips(load(Experiment, Path(options.config), fields), mesh.size, options.images)
    print(f"{Path(options.config).stem} on {mesh.size} chips ({options.topology}), {options.images} images a chip, "
          f"{config.training.precision}, microbatch {config.training.microbatch}")  # fmt: skip
    traced = full_size.training_step(config)
    arguments = parallel.shapes((traced.state, traced.frozen, traced.batch), mesh)
    result = compile_step(steps.program(traced.step, mesh).lower(*arguments))
    memory, limit = (result.arguments + result.temporary) / 2**30, parallel.memory_left(mesh) / 2**30
    fits = f" of {limit:.0f}: {'fits' if memory < limit else 'does not fit'}"
    print(f"compiled in {result.seconds:.0f} s")
    print(f"memory of a chip: {result.arguments / 2**30:.2f} GiB of models and state + "
          f"{result.temporary / 2**30:.2f} while a step runs = {memory:.2f} GiB{fits}")  # fmt: skip
    print(f"counted once in each loop: {result.flops:.3g} FLOPs, {result.bytes_accessed:.3g} bytes of memory traffic")
    for kind, (count, size) in sorted(result.collectives.items()):
        print(f"{count} x {kind}: {size / 2**10:.1f} KiB")


if __name__ == "__main__":
    main()
