"""SFNet (Liu et al., 2017, "SphereFace"): a residual network without batch normalisation that embeds aligned faces.

As OpenSphere's `sfnet20_deprecated` and its kin, in whose names the weights are published: their rectifiers are plain
ReLUs, where the paper of 2017 has PReLUs, and come before the sum.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from fairjax.models.layers import Dtype, conv


@dataclasses.dataclass(frozen=True)
class SFNetConfig:
    """By default SFNet-20: twenty convolutions, 112 x 112 faces, 512 numbers a face."""

    layers: tuple[int, ...] = (1, 2, 4, 1)
    channels: tuple[int, ...] = (64, 128, 256, 512)
    out_channel: int = 512
    image_size: int = 112


class ConvBlock(nnx.Module):
    """Halves the image."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.conv = conv(inputs, outputs, 3, stride=2, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.conv(x))


class BasicBlock(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.conv1 = conv(channels, channels, 3, rngs=rngs, dtype=dtype)
        self.conv2 = conv(channels, channels, 3, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))


class SFNet(nnx.Module):
    """Aligned faces [b, image_size, image_size, 3] in [-1, 1] -> embeddings [b, out_channel], of any length."""

    def __init__(self, config: SFNetConfig, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.stages, inputs = len(config.layers), 3
        for stage, (blocks, outputs) in enumerate(zip(config.layers, config.channels, strict=True), start=1):
            first = ConvBlock(inputs, outputs, rngs=rngs, dtype=dtype)
            rest = [BasicBlock(outputs, rngs=rngs, dtype=dtype) for _ in range(blocks)]
            setattr(self, f"layer{stage}", nnx.List([first, *rest]))
            inputs = outputs
        side = config.image_size // 2**self.stages
        self.fc = nnx.Linear(inputs * side * side, config.out_channel, dtype=dtype, rngs=rngs)

    def __call__(self, faces: jax.Array) -> jax.Array:
        x = faces
        for stage in range(1, self.stages + 1):
            for block in getattr(self, f"layer{stage}"):
                x = block(x)
        return self.fc(x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1))  # the weights expect channels first
