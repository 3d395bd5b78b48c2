"""Builds a bank of faces: `python -m fairjax.faces.bank --data FOLDER --face FILE --output FILE.safetensors`.

Finds the face of each picture and writes what an embedding makes of it, for the loss that keeps generated faces near
real ones; and the classes of each face, where the pictures have labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairjax.program import Parser, UserError, blame, command


def _parser() -> Parser:
    parser = Parser(prog="python -m fairjax.faces.bank", description=__doc__)
    add = parser.add_argument
    add("--data", required=True, help="an image folder, or a dataset's name on the hub")
    add("--subset", metavar="NAME", help="of a dataset on the hub that has several")
    add("--labels", metavar="FILE.yaml", type=Path, help="what values of which columns mean, as for train_classifier; "
        "classes in the order of the classifier that finetuning listens to")  # fmt: skip
    add("--face", required=True, metavar="PATH", help="the embedding, as judges.face: a released .pth, or a folder")
    add("--detector", default="blazeface", help="blazeface, insightface, or whole: each picture is a face")
    add("--weights", metavar="FILE.tflite", type=Path, help="BlazeFace's (default: those of the package)")
    add("--num", type=int, help="how many pictures at most, drawn (default: all)")
    add("--output", metavar="FILE.safetensors", type=Path, required=True, help="where the bank goes")
    return parser


@command
def main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    if options.num is not None and options.num < 1:
        raise UserError(f"--num = {options.num} must be at least 1")
    if options.output.suffix != ".safetensors":
        raise UserError(f"--output = {options.output} must end in .safetensors")
    from rich.console import Console

    from fairjax.convert import folders
    from fairjax.faces import chips, labelled, reading
    from fairjax.progress import bars, counting, named

    console = Console(highlight=False)
    with blame("--labels"):
        mapping = labelled.read_mapping(options.labels) if options.labels else None
    with blame("--face"):
        face, params = reading.face(options.face)
    with blame("--detector"):
        find = chips.finder(options.detector, face.image_size, options.weights)
    with blame("--data"):
        pictures = labelled.read_together(options.data, options.subset, mapping, options.num)
        with bars(console) as progress:
            tensors = chips.embedded(pictures, find, face, params, counting(progress, "faces", len(pictures)))
        if not (count := len(tensors["embeddings"])):
            raise UserError(f"--data: no face was found in {len(pictures)} pictures")
    with blame("--output"):
        options.output.parent.mkdir(parents=True, exist_ok=True)
        folders.write_tensors(options.output, tensors)
    classes = "; ".join(f"{name}: {', '.join(values)}" for name, values in pictures.classes.items())
    told = f"wrote {count} faces of {len(pictures)} pictures to {options.output}{classes and f' ({classes})'}"
    console.print(named(told))


if __name__ == "__main__":
    sys.exit(main())
