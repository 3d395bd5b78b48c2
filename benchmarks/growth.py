"""How a training step's time and memory grow with its solver steps, images, prompts and devices.

    python -m benchmarks.growth --picture docs/growth.png

Of the embedded world's default finetuning, with the whole gradient, in this machine's arithmetic. One of the four is
turned at a time; the others stay at what the title of the picture says. Memory is what the compiled step holds on each
device beside models and state. A machine with one accelerator measures no more than that one; of a CPU, every core is a
device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from fairjax import parallel
from fairjax.config import Experiment
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning


class Size(NamedTuple):
    """Of a step."""

    steps: int = 8  # of the solver
    images: int = 8  # of a prompt
    prompts: int = 1
    devices: int = 1


TURNED = {"steps": (4, 8, 16, 32), "images": (4, 8, 16, 32), "prompts": (1, 2, 4), "devices": (1, 2, 4, 8)}


class Measured(NamedTuple):
    seconds: float
    bytes_of_a_device: int


def measure(size: Size, rounds: int) -> Measured:
    """The median over `rounds` steps after the first, and what the compiler says of the memory."""
    fields = {
        "training.num_steps": (size.steps,) * 2, "training.images_per_prompt": size.images,
        "training.prompts_per_step": size.prompts, "training.grad_steps": None,
    }  # fmt: skip
    finetuning = Finetuning(load(Experiment, None, fields), parallel.mesh(size.devices))
    state, times = finetuning.initial(), []
    batch, _ = finetuning.batch(0, state.bundle)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(finetuning.compiled()(state, finetuning._frozen, batch))
        times.append(time.perf_counter() - start)
    return Measured(statistics.median(times[1:]), finetuning.compiled().memory_analysis().temp_size_in_bytes)


def draw(found: dict[str, dict[int, Measured]], title: str, path: Path) -> None:
    """Seconds and memory by each of the four, on axes on which what is proportional is a straight line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(found), figsize=(3 * len(found), 5), sharey="row", layout="constrained")
    figure.suptitle(title, fontsize=11)
    for column, (name, rows) in zip(panels.T, found.items(), strict=True):
        values = {
            "seconds": [row.seconds for row in rows.values()],
            "MiB of a device": [row.bytes_of_a_device / 2**20 for row in rows.values()],
        }
        for panel, (unit, heights), colour in zip(column, values.items(), ("#0072b2", "#d55e00"), strict=True):
            panel.plot(list(rows), heights, "o-", color=colour)
            panel.set_xticks(list(rows))
            panel.set_xlim(left=0)
            panel.grid(alpha=0.3)
            panel.set_ylabel(unit if panel is panels[list(values).index(unit), 0] else "")
        column[-1].set_xlabel({"steps": "solver steps", "images": "images of a prompt"}.get(name, name))
    for panel in panels[:, 0]:  # each for its row, whose axis they share
        panel.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="a PNG to draw")
    options = parser.parse_args()
    parallel.prepare()
    console, usual = Console(), Size()
    there = len(jax.devices())
    found: dict[str, dict[int, Measured]] = {}
    table = Table("turned", "to", "seconds", "MiB of a device", title=f"{usual} otherwise")
    known: dict[Size, Measured] = {}
    for name, values in TURNED.items():
        for value in values:
            if (size := usual._replace(**{name: value})).devices <= there:
                known[size] = known.get(size) or measure(size, options.rounds)
                found.setdefault(name, {})[value] = known[size]
                seconds, memory = known[size]
                table.add_row(name, str(value), f"{seconds:.3f}", f"{memory / 2**20:.1f}")
                console.print(f"{name} {value}: {seconds:.3f} s", style="dim", highlight=False)
    console.print(table)
    if options.picture:
        kind = jax.devices()[0].device_kind
        held = f"{usual.steps} solver steps, {usual.prompts} prompt, {usual.images} images, {usual.devices} device"
        draw(found, f"A step of the default finetuning on {there} x {kind}; otherwise {held}", options.picture)
        console.print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
