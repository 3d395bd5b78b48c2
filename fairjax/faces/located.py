"""Where the face of each image is: what all locators say, and the locator for images whose faces are in one place."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.faces.geometry import ALIGNED_SIZE, TEMPLATE
from fairjax.models.functional import Params

Box = tuple[float, float, float, float]


class Faces(NamedTuple):
    """The largest face of each of n images; zeros where there is none. No gradient flows through it."""

    boxes: jax.Array  # [n, 4], float32: left, top, right and bottom edge in pixels; may leave the image
    landmarks: jax.Array  # [n, 5, 2], float32: (x, y) in pixels, in the order of `geometry.TEMPLATE`
    scores: jax.Array  # [n], float32, in [0, 1]: how sure that it is a face
    has_face: jax.Array  # [n], bool


class Face(NamedTuple):
    """One face of a picture, as numpy arrays and numbers of the kinds that `Faces` has."""

    box: np.ndarray  # [4]
    landmarks: np.ndarray  # [5, 2]
    score: float


class Locator(Protocol):
    """What finds faces. Its parameters are apart, so that a jitted step does not hold them as constants."""

    def locate(self, params: Params, images: jax.Array) -> Faces:
        """Images [n, h, w, 3] in [-1, 1], of any size -> their faces."""
        ...


@dataclasses.dataclass(frozen=True)
class FixedBox:
    """For images in which the face is in one box, or fills the image: every image has a face, for all it knows.

    Whether someone is shown is for a classifier to tell. Landmarks are where an aligned face that fills the box has
    them. There are no parameters.
    """

    box: Box | None = None
    """In pixels; None: the whole image."""

    def locate(self, params: Params, images: jax.Array) -> Faces:
        n, height, width, _ = images.shape
        box = jnp.asarray(self.box or (0, 0, width, height), jnp.float32)
        corner, size = box[:2], box[2:] - box[:2]
        # TEMPLATE counts from the centre of a pixel, a box from its edge
        landmarks = (TEMPLATE + 0.5) / ALIGNED_SIZE * size[None] + corner[None] - 0.5
        everywhere = [jnp.broadcast_to(value[None], (n, *value.shape)) for value in (box, landmarks)]
        return Faces(*everywhere, jnp.ones(n), jnp.ones(n, bool))
