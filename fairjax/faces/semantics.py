"""Preparing images for CLIP and DINOv2, whose embeddings say what an image means."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Statistics(NamedTuple):
    """Of the pixels that a network learned on, in [0, 1], by channel: red, green, blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""OpenAI's, which OpenCLIP's networks share."""

DINOV2 = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ImageNet's."""


def prepare(images: jax.Array, statistics: Statistics, size: int = 224) -> jax.Array:
    """Images [n, h, h, 3] in [-1, 1] -> [n, size, size, 3], resized and normalised; differentiable in the pixels.

    Bilinear, the whole image, as the authors' scripts do for both networks by torchvision's `Resize`; with
    antialiasing, which it has by default since version 0.17, and had not for tensors in theirs. (The networks' own
    processors are bicubic, and DINOv2's then cuts off an eighth of the image.)
    """
    n, height, width, channels = images.shape
    if height != width:
        raise ValueError(f"images of {width} x {height} pixels: they should be square")
    if height != size:
        images = jax.image.resize(images, (n, size, size, channels), "linear", antialias=True)
    mean, std = (jnp.asarray(values, images.dtype)[None, None, None] for values in statistics)
    return ((images + 1) / 2 - mean) / std
