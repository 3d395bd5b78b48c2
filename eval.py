"""Measures finetuned models against their base on unseen noise: `python eval.py --adapter runs/portraits-gender`.

Fields that are not given are those of the (first) adapter's run, or of --config; what is shown as their default is for
where there is neither.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairjax import cluster
from fairjax.config import BEST, Experiment, config_of
from fairjax.program import UserError, command, lasting
from fairjax.schema import parse

_HELPS = {"output": "where results go (default: beside the adapter, in evaluation-SEED; of several, it must be given)"}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", metavar="DIR", type=Path, action="append", default=[], dest="adapters",
        help="a run folder or an adapter folder; several are compared, with their base and with each other",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", action="store_true", help="also measure at other guidance scales, numbers of steps, and the other "
        "solver, which takes seven to twelve times as long again (or name your own: evaluation.sweep)",
    )  # fmt: skip
    cluster.add_options(parser)


def configure(argv: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """The configuration that a command line asks for, and the program's own options.

    Without `--config`, the configuration of the run that the (first) adapter is of stands in. Results go beside the
    adapter, into a folder of this evaluation's own, unless `--output` says otherwise: never into that of a training,
    and the best adapter's never into the last one's.
    """

    def standing_in(options: argparse.Namespace) -> Path | None:
        return next(filter(None, map(config_of, options.adapters)), None)

    config, options = parse(Experiment, argv, "eval.py", __doc__, _options, standing_in, _HELPS)
    adapters = options.adapters
    if not adapters and not config.evaluation.interventions:
        raise UserError("--adapter is missing: name a run folder, as train.py leaves it, or an adapter folder")
    if "output" not in options.given:
        if len(adapters) != 1:
            raise UserError(f"--output is missing: name a folder for what is found of {len(adapters)} adapters")
        (adapter,) = adapters
        path = config_of(adapter)
        folder = path.parent if path else adapter if adapter.is_dir() else adapter.parent
        own = f"evaluation-{config.evaluation.seed}" + f"-{BEST}" * bool(path and adapter.name == BEST)
        config = config.model_copy(update={"output": str(folder / own)})
    return config, options


@command
def main(argv: list[str]) -> None:
    config, options = configure(argv)
    from rich.console import Console

    from fairjax import parallel
    from fairjax.evaluation.run import evaluate, with_sweep

    parallel.prepare()
    cluster.join(options)
    config = with_sweep(config) if options.sweep else config
    with lasting():
        evaluate(config, options.adapters, Console(quiet=not parallel.is_first()), ["python", "eval.py", *argv])


if __name__ == "__main__":
    sys.exit(main())
