"""Measures a finetuned model against its base on unseen noise: `python eval.py --adapter runs/portraits-gender`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairjax import schema
from fairjax.config import Experiment
from fairjax.schema import UserError, command, parse


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="DIR", type=Path, help="a run folder or an adapter folder (needed)")


@command
def main(argv: list[str]) -> None:
    config, options = parse(Experiment, _with_the_runs_own(argv), "eval.py", __doc__, _options)
    if options.adapter is None:
        raise UserError("--adapter is missing: name a run folder, as train.py leaves it, or an adapter folder")
    from rich.console import Console

    from fairjax import parallel
    from fairjax.evaluation.run import evaluate

    parallel.split_cpu()
    evaluate(config, options.adapter, Console())


def _with_the_runs_own(argv: list[str]) -> list[str]:
    """A run folder knows its configuration: it stands in where no `--config` is given."""
    if "--config" in argv or "--adapter" not in argv[:-1]:
        return argv
    adapter = Path(argv[argv.index("--adapter") + 1])
    kept = adapter / "config.yaml"
    if not kept.is_file():
        return argv
    argv = ["--config", str(kept), *argv]
    if "--output" not in argv:
        seed = schema.load(Experiment, kept).evaluation.seed
        if "--evaluation.seed" in argv[:-1]:
            seed = argv[argv.index("--evaluation.seed") + 1]
        argv += ["--output", str(adapter / f"evaluation-{seed}")]
    return argv


if __name__ == "__main__":
    sys.exit(main())
