"""Measures a finetuned model against its base on unseen noise: `python eval.py --adapter runs/portraits-gender`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairjax import cluster
from fairjax.config import ADAPTER, CONFIG, Experiment
from fairjax.schema import UserError, command, parse


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="DIR", type=Path, help="a run folder or an adapter folder (needed)")
    cluster.add_options(parser)


def configure(argv: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """The configuration that a command line asks for, and the program's own options.

    Without `--config`, the configuration of the run that the adapter is of stands in. Results go beside the adapter,
    into a folder of this evaluation's own, unless `--output` says otherwise: never into that of a training.
    """
    config, options = parse(Experiment, argv, "eval.py", __doc__, _options, lambda options: _run(options.adapter))
    adapter = options.adapter
    if adapter is None:
        raise UserError("--adapter is missing: name a run folder, as train.py leaves it, or an adapter folder")
    if "output" not in options.given:
        run = _run(adapter)
        folder = run.parent if run else adapter if adapter.is_dir() else adapter.parent
        config = config.model_copy(update={"output": str(folder / f"evaluation-{config.evaluation.seed}")})
    return config, options


def _run(adapter: Path | None) -> Path | None:
    """The configuration of the run that an adapter is of, if it lies in one."""
    places = [] if adapter is None else [adapter, adapter.parent] if adapter.name == ADAPTER else [adapter]
    return next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)


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
