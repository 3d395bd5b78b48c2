"""Measures a finetuned model against its base on unseen noise: `python eval.py --adapter runs/portraits-gender`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairjax import cluster
from fairjax.config import Experiment, run_of
from fairjax.schema import UserError, command, parse


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="DIR", type=Path, help="a run folder or an adapter folder (needed)")
    cluster.add_options(parser)


def configure(argv: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """The configuration that a command line asks for, and the program's own options.

    Without `--config`, the configuration of the run that the adapter is of stands in. Results go beside the adapter,
    into a folder of this evaluation's own, unless `--output` says otherwise: never into that of a training.
    """
    config, options = parse(Experiment, argv, "eval.py", __doc__, _options, lambda options: run_of(options.adapter))
    adapter = options.adapter
    if adapter is None:
        raise UserError("--adapter is missing: name a run folder, as train.py leaves it, or an adapter folder")
    if "output" not in options.given:
        run = run_of(adapter)
        folder = run.parent if run else adapter if adapter.is_dir() else adapter.parent
        config = config.model_copy(update={"output": str(folder / f"evaluation-{config.evaluation.seed}")})
    return config, options


@command
def main(argv: list[str]) -> None:
    config, options = configure(argv)
    from rich.console import Console

    from fairjax import parallel
    from fairjax.evaluation.run import evaluate

    parallel.prepare()
    cluster.join(options)
    evaluate(config, options.adapter, Console(quiet=not parallel.is_first()))


if __name__ == "__main__":
    sys.exit(main())
