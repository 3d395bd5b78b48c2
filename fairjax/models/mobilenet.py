"""MobileNetV3 (Howard et al., 2019), with torchvision's names; sizes are data, so a tiny one is a config."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.functional import Params
from fairjax.models.layers import Dtype, conv

_EPSILON = 1e-3  # torchvision's, for MobileNetV3, as the next one

MOMENTUM = 0.01
"""What a batch counts in the running statistics of batch normalisation."""


class Row(NamedTuple):
    """An inverted residual: one line of the paper's tables 1 and 2."""

    kernel: int
    expanded: int
    outputs: int
    squeeze: bool
    hardswish: bool  # else ReLU
    stride: int


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config:
    """The layers and what they give: `stem` channels, `rows`, the width before the logits, and how many logits."""

    rows: tuple[Row, ...]
    last_channels: int
    num_classes: int
    stem: int = 16

    @classmethod
    def large(cls, num_classes: int) -> MobileNetV3Config:
        """torchvision's `mobilenet_v3_large`."""
        sizes = (
            *((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2)),
            *((5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1)),
            *((3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1)),
            *((5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
        )
        return cls(_rows(sizes), 1280, num_classes)

    @classmethod
    def small(cls, num_classes: int) -> MobileNetV3Config:
        """torchvision's `mobilenet_v3_small`."""
        sizes = (
            *((3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2)),
            *((5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1)),
            *((5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)),
        )
        return cls(_rows(sizes), 1024, num_classes)


def _rows(sizes: tuple[tuple[int, ...], ...]) -> tuple[Row, ...]:
    return tuple(Row(k, e, o, bool(se), bool(hs), s) for k, e, o, se, hs, s in sizes)


def divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at most a tenth smaller: torchvision's `_make_divisible`."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


class DepthwiseConv(nnx.Module):
    """One filter a channel, as a sum of shifted products: on a CPU many times faster than XLA's grouped convolution."""

    def __init__(self, channels: int, kernel: int, stride: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.size, self.stride, self.dtype = kernel, stride, dtype
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (kernel, kernel, 1, channels)) / kernel)

    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = (-(-side // self.stride) for side in x.shape[1:3])
        pad = self.size // 2
        padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        kernel = self.kernel[...].astype(x.dtype)
        total = jnp.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
        for i in range(self.size):
            for j in range(self.size):
                window = padded[:, i : i + x.shape[1] : self.stride, j : j + x.shape[2] : self.stride]
                total += window * kernel[i, j, 0][None, None, None]
        return total


def _depthwise(channels: int, kernel: int, stride: int, rngs: nnx.Rngs, dtype: Dtype) -> nnx.Module:
    return DepthwiseConv(channels, kernel, stride, rngs=rngs, dtype=dtype)


class BatchNorm(nnx.BatchNorm):
    """PyTorch's: what it normalises by is the variance of the batch; the running one is of what batches come from."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        how = {"momentum": 1 - MOMENTUM, "epsilon": _EPSILON, "use_fast_variance": False}
        super().__init__(channels, **how, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        before = self.momentum * self.var[...]
        y = super().__call__(x, use_running_average=not train)
        if train:  # flax has moved it towards sums over n, not n - 1
            self.var[...] += (self.var[...] - before) / max(x.size // x.shape[-1] - 1, 1)
        return y


class ConvNormActivation(nnx.Module):
    """torchvision's `Conv2dNormActivation`: its convolution is "0", its batch normalisation "1"."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False,
                 activation: str | None, rngs: nnx.Rngs, dtype: Dtype):  # fmt: skip
        self.activation = activation
        if depthwise:
            convolution = _depthwise(outputs, kernel, stride, rngs, dtype)
        else:
            pad = ((kernel // 2, kernel // 2),) * 2
            convolution = nnx.Conv(
                inputs, outputs, (kernel, kernel), stride, padding=pad, use_bias=False, dtype=dtype, rngs=rngs
            )
        setattr(self, "0", convolution)
        setattr(self, "1", BatchNorm(outputs, rngs=rngs, dtype=dtype))

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = getattr(self, "1")(getattr(self, "0")(x), train)
        match self.activation:
            case "hardswish":
                return jax.nn.hard_swish(x)
            case "relu":
                return jax.nn.relu(x)
        return x


class SqueezeExcitation(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        squeezed = divisible(channels / 4)
        self.fc1 = conv(channels, squeezed, 1, rngs=rngs, dtype=dtype)
        self.fc2 = conv(squeezed, channels, 1, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        scale = self.fc2(jax.nn.relu(self.fc1(x.mean(axis=(1, 2), keepdims=True))))
        return x * jax.nn.hard_sigmoid(scale)


class InvertedResidual(nnx.Module):
    def __init__(self, inputs: int, row: Row, *, rngs: nnx.Rngs, dtype: Dtype):
        self.adds = row.stride == 1 and inputs == row.outputs
        activation = "hardswish" if row.hardswish else "relu"
        layers: list[nnx.Module] = []
        if row.expanded != inputs:
            layers.append(ConvNormActivation(inputs, row.expanded, 1, activation=activation, rngs=rngs, dtype=dtype))
        depthwise = {"depthwise": True, "activation": activation, "rngs": rngs, "dtype": dtype}
        layers.append(ConvNormActivation(row.expanded, row.expanded, row.kernel, row.stride, **depthwise))
        if row.squeeze:
            layers.append(SqueezeExcitation(row.expanded, rngs=rngs, dtype=dtype))
        layers.append(ConvNormActivation(row.expanded, row.outputs, 1, activation=None, rngs=rngs, dtype=dtype))
        self.block = nnx.List(layers)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        h = x
        for layer in self.block:
            h = layer(h, train)
        return x + h if self.adds else h


class MobileNetV3(nnx.Module):
    """Images [b, h, w, 3] -> logits [b, num_classes]."""

    def __init__(self, config: MobileNetV3Config, *, rngs: nnx.Rngs, dtype: Dtype = None):
        kinds = {"rngs": rngs, "dtype": dtype}
        layers: list[nnx.Module] = [ConvNormActivation(3, config.stem, 3, 2, activation="hardswish", **kinds)]
        inputs = config.stem
        for row in config.rows:
            layers.append(InvertedResidual(inputs, row, **kinds))
            inputs = row.outputs
        layers.append(ConvNormActivation(inputs, 6 * inputs, 1, activation="hardswish", **kinds))
        self.features = nnx.List(layers)
        hidden = nnx.Linear(6 * inputs, config.last_channels, dtype=dtype, rngs=rngs)
        logits = nnx.Linear(config.last_channels, config.num_classes, dtype=dtype, rngs=rngs)
        self.classifier = nnx.Dict({"0": hidden, "3": logits})  # 1 and 2 are an activation and a dropout

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = self._pooled(images, train)
        return self.classifier["3"](jax.nn.hard_swish(self.classifier["0"](x)))

    def embed(self, images: jax.Array) -> jax.Array:
        """What the logits are linear in: [b, last_channels]."""
        return jax.nn.hard_swish(self.classifier["0"](self._pooled(images, train=False)))

    def train(self, images: jax.Array) -> tuple[jax.Array, Params]:
        """Logits normalised by this batch's statistics, and the updated running statistics as a part of the tree."""
        logits = self(images, train=True)
        return logits, nnx.to_pure_dict(nnx.state(self, nnx.BatchStat))

    def _pooled(self, images: jax.Array, train: bool) -> jax.Array:
        x = images
        for layer in self.features:
            x = layer(x, train)
        return x.mean(axis=(1, 2))
