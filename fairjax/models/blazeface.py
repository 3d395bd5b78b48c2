"""BlazeFace (Bazarevsky et al., 2019), the short-range face detector of MediaPipe, with the names of its .tflite file.

A single-shot detector: every cell of a 16 x 16 and of an 8 x 8 grid predicts some faces relative to its own centre.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fairjax.models.layers import Dtype, conv

IMAGE_SIZE = 128

KEYPOINTS = ("right eye", "left eye", "tip of the nose", "mouth", "right ear", "left ear")
"""Sides are the person's: who looks at us has the right eye left in the image."""

POINTS = 2 + len(KEYPOINTS)
"""What is predicted of a face, each as (x, y): the centre and the size of its box, and the keypoints."""

_STEM = 24


class _Grid(NamedTuple):
    """Where faces are looked for, and the blocks, (channels, stride), that lead from the grid before to this one."""

    name: str  # the file's: the stride of the grid, or half of it
    cells: int  # in a row
    faces: int  # predicted in each cell
    blocks: tuple[tuple[int, int], ...]


_FINE = ((24, 1), (28, 1), (32, 2), (36, 1), (42, 1), (48, 2), (56, 1), (64, 1), (72, 1), (80, 1), (88, 1))
_GRIDS = (_Grid("8", 16, 2, _FINE), _Grid("16", 8, 6, ((96, 2), (96, 1), (96, 1), (96, 1), (96, 1))))


def anchors() -> np.ndarray:
    """The centres [896, 2] (x, y) that predictions are relative to, as parts of the image's side."""
    grids = []
    for grid in _GRIDS:
        centres = (np.arange(grid.cells) + 0.5) / grid.cells
        grids.append(np.repeat(np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2), grid.faces, axis=0))
    return np.concatenate(grids).astype(np.float32)


def _named(kind: str, number: int) -> str:
    """As Keras counts its layers."""
    return f"{kind}_{number}" if number else kind


def _depthwise(channels: int, stride: int, rngs: nnx.Rngs, dtype: Dtype) -> nnx.Conv:
    """XLA's own: sums of shifted products, as in `mobilenet.py`, are faster to run and take five times to compile."""
    return nnx.Conv(
        channels, channels, (3, 3), stride, padding="SAME", feature_group_count=channels, dtype=dtype, rngs=rngs
    )


def _pool(x: jax.Array) -> jax.Array:
    """The largest of every 2 x 2 pixels.

    Not by `nnx.max_pool`, nor by reshaping and a maximum: XLA's CPU compiler in jaxlib 0.10.2 fuses these with the
    block before, and the result is wrong by several units. LiteRT's outputs are the test.
    """
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


class BlazeFace(nnx.Module):
    """Images [n, 128, 128, 3] in [-1, 1] -> regressors [n, 896, 8, 2] in pixels, logits [n, 896] of a face."""

    def __init__(self, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.conv2d = conv(3, _STEM, 5, stride=2, padding="SAME", rngs=rngs, dtype=dtype)
        inputs, number = _STEM, 0
        for grid in _GRIDS:
            for outputs, stride in grid.blocks:
                setattr(self, _named("depthwise_conv2d", number), _depthwise(inputs, stride, rngs, dtype))
                number += 1
                setattr(self, _named("conv2d", number), conv(inputs, outputs, 1, rngs=rngs, dtype=dtype))
                inputs = outputs
            setattr(self, f"classificator_{grid.name}", conv(inputs, grid.faces, 1, rngs=rngs, dtype=dtype))
            regressor = conv(inputs, grid.faces * POINTS * 2, 1, rngs=rngs, dtype=dtype)
            setattr(self, f"regressor_{grid.name}", regressor)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, number, n = jax.nn.relu(self.conv2d(images)), 0, len(images)
        regressors, logits = [], []
        for grid in _GRIDS:
            for _, stride in grid.blocks:
                x = self._block(x, number, stride)
                number += 1
            regressors.append(getattr(self, f"regressor_{grid.name}")(x).reshape(n, -1, POINTS, 2))
            logits.append(getattr(self, f"classificator_{grid.name}")(x).reshape(n, -1))
        return jnp.concatenate(regressors, axis=1), jnp.concatenate(logits, axis=1)

    def _block(self, x: jax.Array, number: int, stride: int) -> jax.Array:
        """A depthwise and a pointwise convolution; the shortcut is filled up with channels of zeros."""
        h = getattr(self, _named("depthwise_conv2d", number))(x)
        h = getattr(self, _named("conv2d", number + 1))(h)
        if stride == 2:
            x = _pool(x)
        return jax.nn.relu(h + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, h.shape[-1] - x.shape[-1]))))
