"""Finetunes a text-to-image model for fairness: `python train.py`, or with `--config configs/....yaml`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairjax import cluster
from fairjax.config import CHECKPOINTS, CONFIG, Experiment
from fairjax.program import UserError, command, lasting
from fairjax.schema import parse


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    parser.add_argument("--resume-anyway", action="store_true", help="the same, even otherwise configured, or anew")
    parser.add_argument("--dry-run", action="store_true", help="say what the run will do, and do nothing")
    parser.add_argument("--topology", help="with --dry-run: TPUs to plan for, v5e:4x4 say (pip install libtpu)")
    cluster.add_options(parser)


def _check_place(config: Experiment, options: argparse.Namespace) -> None:
    """Raises UserError where a run that was moved or copied would begin anew, or another go on, at its old place."""
    path, there = options.config, Path(config.output)
    if path is None or path.name != CONFIG or not (path.parent / CHECKPOINTS).is_dir() or "output" in options.given:
        return
    if (options.resume or options.resume_anyway) and not (there.exists() and there.samefile(path.parent)):
        moved = f"{path} is of a run that was at output = {config.output!r}, and is elsewhere or a copy now"
        raise UserError(f"--resume: {moved}: --output {path.parent} goes on with it here")


@command
def main(argv: list[str]) -> int | None:
    config, options = parse(Experiment, argv, "train.py", __doc__, _options)
    if options.topology and not options.dry_run:
        raise UserError(f"--topology = {options.topology!r}: only a --dry-run plans for what is not here")
    _check_place(config, options)
    from rich.console import Console

    from fairjax import parallel
    from fairjax.training.interruption import TO_GO_ON
    from fairjax.training.plan import dry_run
    from fairjax.training.run import run  # after the configuration: its errors and --help are instant

    resume = "anyway" if options.resume_anyway else options.resume
    parallel.prepare()
    cluster.join(options)
    console = Console(quiet=not parallel.is_first())
    if options.dry_run:
        dry_run(config, resume, console, options.topology)
        return None
    with lasting():
        results = run(config, resume, console, ["python", "train.py", *argv])
    return TO_GO_ON if results is None else None


if __name__ == "__main__":
    sys.exit(main())
