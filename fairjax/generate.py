"""Writes images of prompts: `python -m fairjax.generate "a photo of the face of a pilot, a person" --num 16`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fairjax.config import GUIDANCE_SCALE
from fairjax.schema import Parser, UserError, blame, command


def _parser() -> Parser:
    parser = Parser(prog="python -m fairjax.generate", description=__doc__)
    parser.add_argument("prompts", nargs="+", help="what to show, in quotes")
    parser.add_argument("--model", default="portraits", help="the embedded model, a diffusers folder, or a hub id")
    parser.add_argument("--adapter", type=Path, help="an adapter or run folder: writes a before/after grid too")
    parser.add_argument("--num", type=int, default=16, help="images of each prompt (default: 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=25, help="solver steps (default: 25)")
    parser.add_argument("--solver", choices=("dpm-solver++", "ddim"), default="dpm-solver++")
    parser.add_argument(
        "--guidance", type=float, default=GUIDANCE_SCALE, help=f"guidance scale (default: {GUIDANCE_SCALE})"
    )
    parser.add_argument("--output", type=Path, default=Path("images"), help="where the images go (default: images)")
    return parser


@command
def main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    for name in ("num", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} = {getattr(options, name)} must be at least 1")
    from PIL import Image

    from fairjax import parallel
    from fairjax.convert.bundles import load_adapter
    from fairjax.evaluation import grid
    from fairjax.pipeline import Pipeline

    parallel.prepare()
    with blame("--model"):
        pipeline = Pipeline.from_pretrained(options.model)
    variants = {"before": {}}
    if options.adapter:
        with blame("--adapter"):
            variants["after"] = load_adapter(options.adapter, pipeline)
    made = {
        name: pipeline.generate(
            options.prompts,
            options.num,
            bundle=bundle,
            seed=options.seed,
            num_steps=options.steps,
            guidance_scale=options.guidance,
            solver=options.solver,
        )
        for name, bundle in variants.items()
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for name, images in made.items():
        for place, (prompt, row) in enumerate(zip(options.prompts, images, strict=True)):
            stem = f"{place:02d}-" + re.sub(r"\W+", "-", prompt).strip("-")[:60]  # long prompts may begin alike
            for number, image in enumerate(row):
                Image.fromarray(image).save(options.output / f"{stem}-{number:03d}-{name}.png")
    rows = [row for images in zip(*made.values(), strict=True) for row in images]
    grid.image_grid([image for row in rows for image in row], columns=options.num).save(options.output / "grid.png")
    print(f"wrote {sum(images.shape[0] * images.shape[1] for images in made.values())} images to {options.output}")


if __name__ == "__main__":
    sys.exit(main())
