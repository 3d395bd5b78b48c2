"""The least time that a GPU which is not here could take for the parts of a step, kernel by kernel.

    pip install 'jax[cuda12]' && JAX_PLATFORMS=cpu python -m benchmarks.roofline --images 10

XLA compiles for a GPU by its description alone, if nothing is to be tried on it (autotuning is what needs the card).
Of every kernel of the optimised program, FLOPs and bytes of its operands and results are counted, and the time that
both take at the published peaks; that operands may still be in the cache is not. Where `benchmarks.parts`, on the card,
takes longer than the sum, kernels fall short of the card; where the sum is long, the program moves too much. Loops are
counted once.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import defaultdict
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of this process; what is compiled for is the description
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType
from rich.console import Console
from rich.table import Table

from benchmarks.parts import parts
from fairjax import parallel

PEAK, BANDWIDTH = 989e12, 4.8e12
"""Of an H200: dense bfloat16 FLOP/s, bytes/s."""

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H200"
"""

_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8, "pred": 1, "s8": 1, "u8": 1}
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota")
_INSTRUCTION = re.compile(r"(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_FMHA_BACKWARD = 2.5
"""Products of matrices in the flash kernel's backward pass, for one in its forward pass: five, for two."""


class Kernel(NamedTuple):
    kind: str
    flops: float
    bytes: float

    @property
    def seconds(self) -> float:
        """The least it can take."""
        return max(self.flops / PEAK, self.bytes / BANDWIDTH)


def shapes(text: str) -> list[tuple[int, list[int]]]:
    """Every array that is named in a line: bytes of a number, dimensions."""
    found = re.findall(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]", text)
    return [(_BYTES[dtype], [int(size) for size in dims.split(",") if size]) for dtype, dims in found]


def size(text: str) -> float:
    return sum(width * np.prod(dims) for width, dims in shapes(text))


def computations(program: str) -> dict[str, list[str]]:
    """The lines of every computation of a program, by name; those of its own under ""."""
    found: dict[str, list[str]] = {}
    for line in program.splitlines():
        if header := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            lines = found["" if header[1] else header[2]] = []
        elif line.startswith("  "):
            lines.append(line.strip())
    return found


def product(out: list[int], left: list[int], right: list[int], batch: float) -> float:
    """FLOPs of a batched product of matrices: left and right have what is summed over once each, out not."""
    return 2 * np.prod(out) * np.sqrt(np.prod(left) * np.prod(right) / np.prod(out) / batch)


def convolution(kind: str, line: str, out: list[int], left: list[int], right: list[int]) -> float:
    """FLOPs of cuDNN's convolutions, in which a kernel comes as OHWI."""
    pixels = left if "BackwardInput" in kind else out
    image_axes, kernel_axes = re.search(r"dim_labels=(\w+)_(\w+)->", line).groups()
    if "BackwardFilter" in kind:
        return 2 * np.prod(out) * np.prod(left) / left[image_axes.index("f")]
    return 2 * np.prod(pixels) * np.prod(right) / right[kernel_axes.index("o")]


def kernels(program: str) -> list[Kernel]:
    """Those of an optimised GPU program, loops' bodies once.

    Raises:
        ValueError: it has what is not counted here.
    """
    called, found = computations(program), []

    def walk(lines: list[str]) -> None:
        parsed = [match.groups() for line in lines if (match := _INSTRUCTION.match(line))]
        known = {name: shape for name, shape, *_ in parsed}
        for line, (name, shape, op, rest) in zip(lines, parsed, strict=True):
            if op in _FREE:
                continue
            if op == "conditional":
                raise ValueError(f"{name} is a conditional, of which no branch is known to run")
            if op in ("while", "call"):
                for body in re.findall(r"(?:body|to_apply)=%([\w.-]+)", line):
                    walk(called[body])
                continue
            operands = [known[other] for other in re.findall(r"%([\w.-]+)", rest.split("), ")[0]) if other in known]
            moved, kind, flops = size(shape) + sum(map(size, operands)), op, 0.0
            arrays = [dims for text in (shape, *operands) for _, dims in shapes(text)[:1]]
            if op == "custom-call":
                kind = re.search(r'custom_call_target="([^"]+)"', line)[1].strip("_").replace("cudnn$", "cuDNN ")
                if "conv" in kind:
                    flops = convolution(kind, line, *arrays[:3])
                elif "fmha" in kind:
                    (batch, queries, heads, channels), keys = arrays[1], arrays[2][1]
                    flops = 4.0 * batch * queries * heads * channels * keys
                    flops *= _FMHA_BACKWARD if "Backward" in kind else 1
                elif "cublas" in kind:
                    raise ValueError(f"{name} is a product of matrices by {kind}, which is not counted")
            elif op == "fusion":
                kind = re.sub(r"[\d.]+$", "", name)
                inside = [match.groups() for one in called[re.search(r"calls=%([\w.-]+)", line)[1]]
                          if (match := _INSTRUCTION.match(one))]  # fmt: skip
                within = {one: text for one, text, *_ in inside}
                for _, text, inner, arguments in inside:
                    if inner == "dot":
                        kind = "products of matrices"
                        left, right = re.findall(r"%([\w.-]+)", arguments.split("), ")[0])[:2]
                        out, *two = (shapes(one)[0][1] for one in (text, within[left], within[right]))
                        axes = re.search(r"lhs_batch_dims=\{([\d,]+)\}", arguments)
                        batch = np.prod(out[: len(axes[1].split(","))]) if axes else 1
                        flops += product(out, *two, batch)
            found.append(Kernel(kind, flops, moved))

    walk(called[""])
    return found


def table(title: str, found: list[Kernel]) -> Table:
    """The kinds of kernels that take longest, and all."""
    shown = Table(title=title, title_justify="left")
    for name in ("kernels", "number", "TFLOP", "GB", "least ms"):
        shown.add_column(name, justify="left" if name == "kernels" else "right")
    by_kind: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in found:
        by_kind[kernel.kind].append(kernel)
    longest = sorted(by_kind.items(), key=lambda row: -sum(kernel.seconds for kernel in row[1]))[:10]
    for kind, those in [*longest, ("all", found)]:
        flops, moved = sum(kernel.flops for kernel in those) / 1e12, sum(kernel.bytes for kernel in those) / 1e9
        least = 1e3 * sum(kernel.seconds for kernel in those)
        shown.add_row(kind, str(len(those)), f"{flops:.2f}", f"{moved:.2f}", f"{least:.2f}")
    return shown


def main() -> None:
    known = list(parts())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10, help="at a time (default: 10)")
    parser.add_argument("--parts", type=int, nargs="+", choices=range(len(known)), metavar="N",
                        help="; ".join(f"{number}: {part.name}" for number, part in enumerate(known)))  # fmt: skip
    options = parser.parse_args()
    try:
        devices = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1").devices
    except Exception as error:  # of several kinds, by what is missing
        raise SystemExit(
            f"no compiler for GPUs here (pip install 'jax[cuda12]'): {str(error).splitlines()[0]}"
        ) from None
    mesh = jax.sharding.Mesh(np.array(devices), (parallel.AXIS,), axis_types=(AxisType.Auto,))
    for number in options.parts or range(len(known)):
        part = known[number]
        arguments = parallel.shapes(part.arguments(options.images), mesh)
        everywhere = (parallel.REPLICATED,) * len(arguments)
        start = time.perf_counter()
        program = parallel.spread(part.make("bfloat16"), mesh, everywhere, parallel.REPLICATED)
        compiled = program.lower(*arguments).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
        title = (
            f"{part.name}, {options.images} images: compiled in {time.perf_counter() - start:.0f} s, {memory:.1f} GiB"
        )
        Console(width=100).print(table(title, kernels(compiled.as_text())))


if __name__ == "__main__":
    main()
