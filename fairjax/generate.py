"""Writes images of prompts: `python -m fairjax.generate "a photo of the face of a pilot, a person" --num 16`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

from fairjax import arguments
from fairjax.config import Experiment, Solver, config_of
from fairjax.program import Parser, UserError, blame, command
from fairjax.schema import load


def _parser() -> Parser:
    parser = Parser(prog="python -m fairjax.generate", description=__doc__)
    parser.add_argument("prompts", nargs="+", help="what to show, in quotes")
    parser.add_argument(
        "--model",
        help="portraits, a diffusers folder, or a hub id (default: the adapter's run's, else portraits)",
    )
    parser.add_argument("--adapter", type=Path, help="an adapter or run folder: writes a before/after grid too")
    parser.add_argument("--num", type=int, default=16, help="images of each prompt (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--steps", type=int, default=25, help="solver steps (default: 25)")
    parser.add_argument("--solver", choices=get_args(Solver), default="dpm-solver++", help="(default: dpm-solver++)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the run's, else the model's)")
    parser.add_argument("--output", type=Path, default=Path("images"), help="where the images go (default: images)")
    return parser


@command
def main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    try:
        for name in ("num", "steps"):
            arguments.whole(f"--{name}", getattr(options, name), 1)
        arguments.whole("--seed", options.seed, 0, 2**32 - 1)
        arguments.scale("--guidance", options.guidance or 0)
    except ValueError as error:
        raise UserError(str(error)) from None
    for prompt in options.prompts:
        if prompt != prompt.encode(errors="replace").decode():  # bytes that are no UTF-8
            raise UserError(f"{prompt!r} is not text")
    from rich.console import Console

    from fairjax import parallel
    from fairjax.convert.bundles import load_adapter
    from fairjax.evaluation.columns import AFTER, BASE, Column, Setting
    from fairjax.gallery import Gallery
    from fairjax.pipeline import Pipeline
    from fairjax.progress import bars, counting

    parallel.prepare()
    path = config_of(options.adapter)
    config = load(Experiment, path) if path else Experiment()
    with blame("--model"):
        pipeline = Pipeline.from_pretrained(options.model or config.model)
    try:
        pipeline.check_steps(options.steps, "--steps", options.solver)
    except ValueError as error:
        raise UserError(str(error)) from None
    columns = [Column(BASE, {})]
    if options.adapter:
        with blame("--adapter"):
            columns.append(Column(AFTER, load_adapter(options.adapter, pipeline)))
    with blame(f"--output = {str(options.output)!r}"):
        options.output.mkdir(parents=True, exist_ok=True)
    usual = config.training.guidance_scale if path else pipeline.guidance_scale
    setting = Setting(options.steps, usual if options.guidance is None else options.guidance, options.solver)
    gallery = Gallery(options.output, options.prompts, options.num)
    images = len(options.prompts) * options.num
    with bars(Console(stderr=True), transient=True) as progress:
        tells = [counting(progress, column.name, images) for column in columns]
        made = [
            gallery.fill(pipeline, column, setting, options.seed, tell)
            for column, tell in zip(columns, tells, strict=True)
        ]
    gallery.picture(columns)
    kept = len(columns) * len(options.prompts) * options.num - sum(made)
    others = gallery.others(columns)
    print(
        f"wrote {sum(made)} images to {options.output}"
        + f", which had {kept} of them already" * bool(kept)
        + f", beside {others} that were there" * bool(others)
    )


if __name__ == "__main__":
    sys.exit(main())
