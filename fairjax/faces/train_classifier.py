"""Trains classifiers of faces on labelled pictures: `python -m fairjax.faces.train_classifier --data FOLDER`.

Finds and cuts out the face of each picture as finetuning will, trains one classifier for finetuning and another, from
another seed, for measuring, and writes both with their confusion matrices on pictures held out.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from fairjax.program import Parser, UserError, blame, command

_EPILOG = """Labels: FairFace's columns gender, race and age are merged into the paper's classes (race: WMELH, Black,
Indian, Asian; age: young, old). Of other pictures, those in one folder are a class. --labels says anything else, in a
YAML file of the form  attribute: {class: [value, ...], ...}  where the attribute is a column."""


def _parser() -> Parser:
    parser = Parser(prog="python -m fairjax.faces.train_classifier", description=__doc__, epilog=_EPILOG)
    add = parser.add_argument
    add("--data", "--dataset", required=True, help="an image folder, or a dataset's name on the hub")
    add("--subset", metavar="NAME", help="of a dataset on the hub that has several (FairFace: 1.25)")
    add("--labels", metavar="FILE.yaml", type=Path, help="what values of which columns mean (default: see below)")
    add("--detector", default="blazeface", help="blazeface, insightface, or whole: each picture is a face")
    add("--weights", metavar="FILE.tflite", type=Path, help="BlazeFace's (default: those of the package)")
    add("--network", choices=("large", "small"), default="large", help="MobileNetV3's size (default: large)")
    add("--size", type=int, default=224, help="side of the faces in pixels (default: 224)")
    add("--steps", type=int, default=20_000, help="optimizer steps of each classifier (default: 20000)")
    add("--batch-size", type=int, default=128, help="faces of a step (default: 128)")
    add("--learning-rate", type=float, default=1e-3, help="AdamW's, at its highest (default: 0.001)")
    add("--adversary", metavar="RADIUS", type=float, default=0.0, help="train the first one on the worst picture "
        "within this distance of each, in pixels of [-1, 1] (default: 0, on the pictures)")  # fmt: skip
    add("--seed", type=int, default=0)
    add("--output", metavar="DIR", type=Path, default=Path("runs/classifiers"), help="(default: runs/classifiers)")
    return parser


@command
def main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    for name in ("size", "steps", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} = {getattr(options, name)} must be at least 1")
    if not 0 < options.learning_rate < math.inf:
        raise UserError(f"--learning-rate = {options.learning_rate} must be above 0")
    if not 0 <= options.adversary < math.inf:
        raise UserError(f"--adversary = {options.adversary} must be a distance, 0 for none")
    from rich.console import Console

    from fairjax import parallel
    from fairjax.faces import chips, classifier_training, labelled
    from fairjax.models.mobilenet import MobileNetV3Config
    from fairjax.training.fit import Fit

    parallel.prepare()
    if options.batch_size % (devices := parallel.mesh().size):
        raise UserError(f"--batch-size = {options.batch_size} must be a multiple of the {devices} devices")
    console = Console(highlight=False)
    with blame("--labels"):
        mapping = labelled.read_mapping(options.labels) if options.labels else None
    with blame("--detector"):
        find = chips.finder(options.detector, options.size, options.weights)
    with blame("--data"):
        trained, held_out = labelled.read(options.data, options.subset, mapping)
    with blame("--output"):
        settings = {name: str(value) for name, value in vars(options).items()}
        classifier_training.begin(options.output, settings | {"what is labelled": labelled.told(trained, held_out)})
    with blame("--data"):
        parts = [
            classifier_training.faces(name, pictures, find, options.size, options.output, console)
            for name, pictures in (("train", trained), ("held_out", held_out))
        ]
    config = getattr(MobileNetV3Config, options.network)(sum(map(len, trained.classes.values())))
    plan = Fit(options.steps, options.batch_size, options.learning_rate, ema=0.999, save_every=1_000)
    for number, (name, radius) in enumerate({"classifier": options.adversary, "classifier_eval": 0.0}.items()):
        seed = options.seed + number
        matrices = classifier_training.train(name, options.output, *parts, config, plan, seed, radius, console)
        classifier_training.show(name, matrices, trained.classes, console)
    console.print(f"wrote {options.output}")


if __name__ == "__main__":
    sys.exit(main())
