"""A run at a glance: `python -m fairjax.status runs/NAME`. Reads what the run writes, and nothing of JAX."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairjax import files
from fairjax.config import CHECKPOINTS, CONFIG, LOG, RESULTS, VALIDATION, Experiment
from fairjax.program import Parser, UserError, command, legible
from fairjax.schema import load
from fairjax.training.watch import LEAST, PATIENCE, STALLS

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 40


def curve(values: Sequence[float], width: int = _WIDTH) -> str:
    """The values as one line of blocks, means over equal parts where there are more than fit; 0 is the lowest."""
    parts = min(width, len(values))
    edges = [round(i * len(values) / parts) for i in range(parts + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    highest = max(max(means), 1e-12)
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, max(0, int(mean / highest * len(_BLOCKS))))] for mean in means)


def status(folder: Path, now: float) -> list[str]:
    """What there is to say of a run, line by line.

    Args:
        now: seconds since the epoch.

    Raises:
        UserError: one line, where the folder is of no run.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run: no {CONFIG} in it")
    config = load(Experiment, folder / CONFIG)
    log = folder / LOG
    rows = files.json_lines(log, step=int, seconds=int | float)
    kinds = ", ".join(config.adapter.kinds)
    lines = [f"{folder}: {' x '.join(config.target.attributes)}, {kinds} of {config.model}"]
    damaged = sorted(folder.glob(f"{CHECKPOINTS}/damaged/*"))
    warnings = [f"{path.name}: a checkpoint that was damaged" for path in damaged]
    if not rows:
        return [*lines, "no step taken yet", *_checkpoint(folder, now), *(f"warning: {w}" for w in warnings)]
    done, steps = rows[-1]["step"], config.training.steps
    usual = statistics.median(row["seconds"] for row in rows[-50:])
    images = config.training.prompts_per_step * config.training.images_per_prompt
    silent = now - log.stat().st_mtime
    stands = silent > max(PATIENCE * usual, LEAST)
    ended = (folder / RESULTS).is_file() and done >= steps
    speed = f"{usual:.3g} s a step, {images / max(usual, 1e-9):.3g} images/s"
    for devices, memory in zip(_numbers(rows[-1:], "devices"), _numbers(rows[-1:], "memory"), strict=False):
        speed += f", {devices} {'device' if devices == 1 else 'devices'}, {memory / 2**30:.2f} GiB"
    if ended:
        lines.append(f"all {steps} steps taken and measured; {speed}")
    elif done >= steps:
        lines.append(f"all {steps} steps taken, not yet measured; {speed}")
    else:
        left = "not running" if stands else f"{_duration((steps - done) * usual)} left"
        lines.append(f"step {done} of {steps} ({done / steps:.0%}); {speed}; {left}")
    for name in ["loss", *(name for name in rows[-1] if name.startswith(f"{config.target.measure}/"))]:
        values = _numbers(rows, name)
        if values:
            first, last = (statistics.fmean(part) for part in (values[:20], values[-20:]))
            lines.append(f"{name:<24} {first:.3f} {curve(values)} {last:.3f}")
    looks = files.json_lines(folder / VALIDATION, step=int, distance=int | float | None, warnings=list)
    distances = _numbers(looks, "distance")
    if distances:
        at = f"{distances[0]:.3f} {curve(distances)} {distances[-1]:.3f}"
        lines.append(f"{'validation: distance':<24} {at}  (the last at step {looks[-1]['step']})")
    if looks:
        warnings += [f"validation at step {looks[-1]['step']}: {warning}" for warning in looks[-1]["warnings"]]
    lines += _checkpoint(folder, now)
    bad = [row["step"] for row in rows if row.get("loss") is None or row.get("gradient_norm") is None]
    if bad:
        warnings.append(f"{len(bad)} steps were skipped, the last of them {bad[-1]}: a loss or gradient was not finite")
    without = _numbers(rows[-50:], "prompts_without_target")
    if without and statistics.fmean(without) > config.training.prompts_per_step / 2:
        warnings.append("of most prompts no image has a target: no face, or none that is sure (loss.threshold)")
    stalls = (folder / STALLS).read_text(errors="replace").count(": no step for ") if (folder / STALLS).is_file() else 0
    if stalls:
        warnings.append(f"it stood still {stalls} {'time' if stalls == 1 else 'times'}; {STALLS} says where")
    if not ended and done < steps and stands:
        warnings.append(f"no step for {_duration(silent)}: ended, or stalled (--resume goes on)")
    return [*lines, *(f"warning: {warning}" for warning in warnings)]


def _numbers(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if isinstance(row.get(name), int | float)]


def _checkpoint(folder: Path, now: float) -> list[str]:
    kept = [path.parent for path in folder.glob(f"{CHECKPOINTS}/*/{files.SUMS}") if path.parent.name.isdecimal()]
    if not kept:
        return ["no checkpoint yet"]
    newest = max(kept, key=lambda path: int(path.name))
    ago = max(now - newest.stat().st_mtime, 0)  # a file server's clock may be ahead
    return [f"last checkpoint: step {newest.name}, {_duration(ago)} ago"]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m fairjax.status", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run folder, as train.py leaves it")
    problems = []
    for number, folder in enumerate(parser.parse_args(argv).runs):
        try:
            print("\n" * (number > len(problems)) + "\n".join(map(legible, status(folder, time.time()))))
        except UserError as error:  # after what there is to say of the others
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))


if __name__ == "__main__":
    sys.exit(main())
