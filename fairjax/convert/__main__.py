"""Carries adapters between fairjax and the PyTorch world:
`python -m fairjax.convert runs/NAME --to kohya`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fairjax import files
from fairjax.config import ADAPTER, RESULTS, Experiment, config_of
from fairjax.program import Parser, UserError, blame, command
from fairjax.schema import load

_MAP = """what is read:
  a run folder, an adapter folder
  LoRA of diffusers (also older), PEFT or kohya
  textual inversions (.safetensors)
  text_encoder_lora_EMA.pth, unet_lora_EMA.pth and prefix embeddings of the
  paper's authors

what is written (--to):
  diffusers  a folder for load_lora_weights and load_textual_inversion; fairjax
             reads it, too
  kohya      one .safetensors, for AUTOMATIC1111 and ComfyUI
  pipeline   the whole model with the adapter merged in, for from_pretrained

Several files are read as one adapter:
  python -m fairjax.convert text_encoder_lora_EMA.pth unet_lora_EMA.pth ...
Run folders hold averaged (EMA) weights. Pickles (.pth) are read without
executing what is in them. A pipeline with its adapter merged in is a model, from
which no adapter comes back: keep the run. Classifiers, face embeddings and banks
(.pt, .pth, .pkl) need no conversion: configurations name them as they are."""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fairjax.convert", description=__doc__, epilog=_MAP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("adapters", nargs="+", type=Path, metavar="ADAPTER", help="what to read (see below)")
    parser.add_argument(
        "--to", choices=("diffusers", "kohya", "pipeline"), default="diffusers", help="(default: diffusers)"
    )
    parser.add_argument(
        "--model", help="the model that it was made for: a folder, a hub id or portraits (default: that of the run)"
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder; for kohya, a new .safetensors file")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of a pipeline's weights (default: float32)"
    )
    return parser


@command
def main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    for path in options.adapters:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    if options.output.exists():
        raise UserError(f"--output = {str(options.output)!r} exists already: choose a new name")
    card = options.output.with_suffix(".md")
    if options.to == "kohya" and options.output.suffix != ".safetensors":
        raise UserError(f"--output = {str(options.output)!r} must end in .safetensors")
    if options.to == "kohya" and card.exists():
        raise UserError(f"--output = {str(options.output)!r}: {card}, its card, exists already: choose a new name")
    from fairjax.convert import adapters

    with blame("ADAPTER"):  # what is none is told before a model is asked for, or downloaded
        for path in filter(Path.is_file, options.adapters):
            adapters.read(path)
    configs = [load(Experiment, path) for path in map(config_of, options.adapters) if path]
    model = options.model or (configs[0].model if configs else None)
    if model is None:
        raise UserError("--model is missing: name the model that the adapter was made for")
    import numpy as np

    from fairjax.convert import bundles, cards
    from fairjax.pipeline import Pipeline

    with blame("--model"):
        pipeline = Pipeline.from_pretrained(model)
    with blame("ADAPTER"):
        bundle = bundles.load_adapters(options.adapters, pipeline)
        config = configs[0] if len(options.adapters) == len(configs) == 1 else None  # of several, one is not all
        about = (bundle, config, _results(options.adapters[0]) if config and config.model == model else None)
    output, name = options.output, options.output.name
    with blame(f"--output = {str(output)!r}"):
        if options.to == "diffusers":
            bundles.save_adapter(bundle, pipeline, output)
            cards.write(output, *about, cards.use_of_folder(bundle, model, name))
        elif options.to == "kohya":
            bundles.save_kohya(bundle, pipeline, output)
            files.write_text(card, cards.card(*about, cards.use_of_kohya(bundle, model, name)))
        else:
            bundles.save_pipeline(bundle, pipeline, output, np.dtype(options.dtype))
            cards.write(output, *about, cards.use_of_pipeline(bundle, model, name))
    kinds = ", ".join(sorted(bundle))
    print(f"wrote {output} ({options.to}: {kinds})")


def _results(adapter: Path) -> dict[str, Any] | None:
    """What the run measured of its adapter, if it did; of the best on its way it measured nothing."""
    from fairjax.convert import cards

    run = config_of(adapter).parent
    path = run / RESULTS
    return cards.read_results(path) if adapter in (run, run / ADAPTER) and path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
