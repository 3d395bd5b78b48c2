"""Cutting faces out of images: square crops for classifiers, aligned faces for the embedding.

Both are differentiable in the pixels, and not in boxes and landmarks. A pixel's index is the coordinate of its centre
in landmarks, as detectors give them; boxes are edges, so that pixel i of a row covers [i, i + 1]. Where there is no
face, a box or landmarks of zeros give a finite, empty picture that no gradient flows through.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

MARGINS = {"insightface": 0.5, "blazeface": 1.0}
"""How much larger than its box the crop is, by detector.

0.5 is the paper's, for the boxes of insightface. Those of BlazeFace end at the brows: their side is 2.1 distances
between the eyes on a photograph at hand, the longer side of insightface's kind of box 2.9 in RetinaFace's published
example. Twice the former is about the same crop as 1.5 times the latter, so that classifiers of the one see faces of
the other.
"""

CROP_SIZE, ALIGNED_SIZE = 224, 112

TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
"""Where eyes, nose and corners of the mouth [5, 2] (x, y) are in an aligned face: left in the image comes first."""

_BACKGROUND = -1.0


def expand(boxes: jax.Array, margin: float) -> jax.Array:
    """Boxes [..., 4] (left, top, right, bottom) -> squares about the same centre.

    Their side is the longer one times `1 + margin` (`expand_bbox` in the authors' scripts); they may leave the image.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    centre = (low + high) / 2
    half = (high - low).max(axis=-1, keepdims=True) * (1 + margin) / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def crop(images: jax.Array, boxes: jax.Array, size: int = CROP_SIZE) -> jax.Array:
    """What the boxes show, resized: bilinear with antialiasing, -1 outside the image.

    Equals, in PyTorch, padding with -1, cropping, and `interpolate(mode="bilinear", antialias=True)`.

    Args:
        images: [n, h, w, c] in [-1, 1].
        boxes: [n, 4] (left, top, right, bottom) in pixels; rounded to whole ones, as a crop must be.

    Returns:
        [n, size, size, c]; all -1 where the box is empty.
    """
    boxes = jnp.round(jax.lax.stop_gradient(boxes).astype(jnp.float32))
    weights = jax.vmap(_resampling, in_axes=(0, 0, None, None))
    down = weights(boxes[:, 1], boxes[:, 3], images.shape[1], size)
    across = weights(boxes[:, 0], boxes[:, 2], images.shape[2], size)
    # The padding is zero once the background is, and need not be there.
    inside = images.astype(jnp.float32) - _BACKGROUND
    chips = jnp.einsum("nyh,nhwc,nxw->nyxc", down, inside, across, precision=jax.lax.Precision.HIGHEST)
    return (chips + _BACKGROUND).astype(images.dtype)


def _resampling(start: jax.Array, stop: jax.Array, length: int, size: int) -> jax.Array:
    """The matrix [size, length] that resizes pixels `start` to `stop` of a row of `length`, by a triangle filter.

    Rows sum to less than 1 by the weight of the pixels of the crop that are outside of the row.
    """
    scale = (stop - start) / size
    radius = jnp.maximum(scale, 1)
    centre = (jnp.arange(size) + 0.5) * scale  # of the new pixels, from `start`
    pixel = jnp.arange(length) - start
    distance = jnp.abs(pixel[None, :] + 0.5 - centre[:, None])
    weights = jnp.where(((pixel >= 0) & (pixel < stop - start))[None, :], jnp.maximum(1 - distance / radius, 0), 0)
    # Their sum over all pixels of the crop, also those outside the row, of which there may be any number.
    before = jnp.floor(centre + 0.5)  # how many pixels of the crop have their centre at the new pixel's or before it
    nearest = centre + 0.5 - before  # how far the last of them is
    total = _triangle(nearest, before, radius) + _triangle(1 - nearest, stop - start - before, radius)
    return weights / jnp.where(total > 0, total, 1)[:, None]


def _triangle(distance: jax.Array, count: jax.Array, radius: jax.Array) -> jax.Array:
    """The sum of `max(0, 1 - (distance + k) / radius)` over k = 0 ... count - 1."""
    count = jnp.clip(jnp.floor(radius - distance) + 1, 0, jnp.maximum(count, 0))
    return count * (1 - (distance + (count - 1) / 2) / radius)


def similarity(points: jax.Array, template: jax.Array = TEMPLATE) -> jax.Array:
    """The rotation, scaling and shift [..., 2, 3] that brings `points` [..., k, 2] closest to `template` [k, 2].

    Least squares (Umeyama, 1991) has a closed form in the plane: with centred points as complex numbers p and q, the
    factor is sum(conj(p) q) / sum(|p|^2). Points that are all one give the zero matrix.
    """
    template = jnp.asarray(template, jnp.float32)
    from_mean, to_mean = points.mean(axis=-2, keepdims=True), template.mean(axis=-2, keepdims=True)
    p, q = points - from_mean, jnp.broadcast_to(template - to_mean, points.shape)
    squared = jnp.square(p).sum(axis=(-2, -1))
    spread = jnp.where(squared > 0, squared, 1)
    real = (p * q).sum(axis=(-2, -1)) / spread
    imaginary = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(axis=-1) / spread
    turn = jnp.stack([jnp.stack([real, -imaginary], -1), jnp.stack([imaginary, real], -1)], -2)
    shift = jnp.broadcast_to(to_mean, from_mean.shape)[..., 0, :] - (turn * from_mean).sum(axis=-1)
    matrix = jnp.concatenate([turn, shift[..., None]], axis=-1)
    return jnp.where((squared > 0)[..., None, None], matrix, 0)


def align(images: jax.Array, landmarks: jax.Array, size: int = ALIGNED_SIZE) -> jax.Array:
    """Faces turned, scaled and shifted so that their landmarks are at `TEMPLATE`: bilinear, -1 outside the image.

    As OpenCV's `warpAffine`, by which the embedding's training images were made.

    Args:
        images: [n, h, w, c] in [-1, 1].
        landmarks: [n, 5, 2] (x, y) in pixels, in the order of `TEMPLATE`.
        size: of the result; the template, made for 112, is scaled with it.

    Returns:
        [n, size, size, c]; all -1 where the landmarks are all one point.
    """
    template = TEMPLATE * (size / ALIGNED_SIZE)
    matrices = similarity(jax.lax.stop_gradient(landmarks).astype(jnp.float32), template)
    return jax.vmap(_warp, in_axes=(0, 0, None))(images, matrices, size)


def _warp(image: jax.Array, matrix: jax.Array, size: int) -> jax.Array:
    (a, _, x0), (b, _, y0) = matrix
    squared = jnp.square(a) + jnp.square(b)
    y, x = jnp.meshgrid(jnp.arange(size) - y0, jnp.arange(size) - x0, indexing="ij")
    safe = jnp.where(squared > 0, squared, 1)
    outside = -2.0  # no pixel is within one of it
    column = jnp.where(squared > 0, (a * x + b * y) / safe, outside)
    row = jnp.where(squared > 0, (a * y - b * x) / safe, outside)

    def sample(channel: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(channel, [row, column], order=1, mode="constant", cval=_BACKGROUND)

    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)
