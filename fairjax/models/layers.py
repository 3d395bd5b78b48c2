"""Layers that several networks share. Images are NHWC; names follow diffusers and transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fairjax.models.attention import attend, device

Dtype = jnp.dtype | None
"""The dtype of the computation; parameters are float32, statistics and softmax always are."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


_IMAGES = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    rngs: nnx.Rngs,
    dtype: Dtype = None,
    stride: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> nnx.Conv:
    """A convolution padded as PyTorch's `padding=kernel // 2`, unless `padding` says otherwise."""
    if padding is None:
        padding = ((kernel // 2, kernel // 2),) * 2
    return nnx.Conv(
        inputs, outputs, (kernel, kernel), stride, padding=padding, dtype=dtype, rngs=rngs,
        conv_general_dilated=convolve,
    )  # fmt: skip


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]],
             **how: Any) -> jax.Array:  # fmt: skip
    """`lax.conv_general_dilated` of images [n, h, w, c] and a kernel [k, l, c, d], for CPUs with a gradient of its own.

    The gradient by the images is a convolution by the kernel turned round. Autodiff asks for it by naming the kernel's
    channels in the other order, for which XLA on CPUs has none of its fast ones: up to twenty times as slow in a loop
    (`benchmarks/convolution.py`). So there the kernel is laid out anew; differentiable once, in reverse mode.
    """
    apply = partial(lax.conv_general_dilated, window_strides=strides, **how)
    plain = partial(apply, padding=padding)
    if device()[0] != "cpu" or any(stride != 1 for stride in strides):
        return plain(x, kernel)

    def backward(saved, g):
        x, kernel = saved
        sides = zip(kernel.shape, padding, strict=False)
        other = [(side - 1 - low, side - 1 - high) for side, (low, high) in sides]
        turned = kernel[::-1, ::-1].swapaxes(2, 3)
        return apply(g, turned, padding=other), jax.vjp(partial(plain, x), kernel)[1](g)[0]

    unstrided = jax.custom_vjp(plain)
    unstrided.defvjp(lambda *arguments: (plain(*arguments), arguments), backward)
    return unstrided(x, kernel)


def convolve_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution by [3, 3, c, d], with the images' size kept, of images [n, h, w, c] doubled by nearest neighbour.

    Of the nine pixels that a kernel sees there, several are the same one of the small image. With their weights added
    first four are left: 4/9 of the products, and the large image is never made. That is the transpose of a convolution
    by [4, 4, d, c] with a stride of 2, for which accelerators have kernels; on CPUs, one by 2 x 2 for each of the four
    places that a pixel of the small image has in the large one is quicker (`benchmarks/upsampling.py`).
    """
    kernel = kernel.astype(jnp.float32)  # sums of weights are rounded once
    if device()[0] == "cpu":
        return _by_place(x, kernel)
    wide = sum(jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1))
    turned = wide[::-1, ::-1].swapaxes(2, 3).astype(x.dtype)
    n, height, width, _ = x.shape
    large = jax.ShapeDtypeStruct((n, 2 * height, 2 * width, kernel.shape[3]), x.dtype)
    halve = partial(lax.conv_general_dilated, rhs=turned, window_strides=(2, 2), padding=((1, 1), (1, 1)), **_IMAGES)
    (y,) = jax.linear_transpose(halve, large)(x)
    return y


def _by_place(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve_doubled` as four convolutions of the small image, whose results lie between each other."""

    def joined(kernel: jax.Array, place: int) -> jax.Array:
        """With those of its three rows as one that see the same row, from an even row of the large image or an odd."""
        split = 1 + place
        return jnp.stack([kernel[:split].sum(0), kernel[split:].sum(0)])

    def part(row: int, column: int) -> jax.Array:
        own = joined(joined(kernel, row).swapaxes(0, 1), column).swapaxes(0, 1).astype(x.dtype)
        return convolve(x, own, (1, 1), tuple((1 - place, place) for place in (row, column)), **_IMAGES)

    rows = [jnp.stack([part(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    n, height, width, _ = x.shape
    return jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, -1)


def layer_norm(channels: int, epsilon: float, *, rngs: nnx.Rngs, dtype: Dtype = None) -> nnx.LayerNorm:
    """PyTorch's layer normalisation, with its two-pass variance."""
    return nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


class MLP(nnx.Module):
    """The two layers of a transformer's block, as CLIP and DINOv2 name them."""

    def __init__(
        self, channels: int, inner: int, activation: Callable[[jax.Array], jax.Array], *, rngs: nnx.Rngs, dtype: Dtype
    ):
        self.activation = activation
        self.fc1 = nnx.Linear(channels, inner, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(inner, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.activation(self.fc1(x)))


class GroupNorm(nnx.Module):
    """PyTorch's group normalisation of images, with its two-pass variance, in float32 throughout.

    Statistics are taken by channel and then joined by group, so that no image is ever laid out as [..., groups,
    channels / groups]: with few channels a group, XLA is several times as slow at that on a CPU
    (`benchmarks/group_norm.py`).
    """

    def __init__(self, channels: int, groups: int, epsilon: float, *, rngs: nnx.Rngs, dtype: Dtype = None):
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be split into {groups} groups")
        self.groups, self.epsilon, self.dtype = groups, epsilon, dtype
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        y = x.astype(jnp.float32)
        centred = y - self._group_mean(y)
        deviation = jnp.sqrt(self._group_mean(jnp.square(centred)) + self.epsilon)
        return (centred * (scale[None, None, None, :] / deviation) + bias[None, None, None, :]).astype(
            self.dtype or x.dtype
        )

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """[n, h, w, c] -> [n, 1, 1, c], the mean over the image and over the group that a channel is in."""
        n, _, _, channels = x.shape
        by_group = x.mean((1, 2)).reshape(n, self.groups, -1).mean(-1)
        return jnp.repeat(by_group, channels // self.groups, axis=-1)[:, None, None, :]


class Identity(nnx.Module):
    """Holds the place of a dropout, so that the layers after it keep their PyTorch index."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class ResnetBlock2D(nnx.Module):
    """diffusers' `ResnetBlock2D`: two normalised convolutions, a time embedding between them, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, groups: int, epsilon: float, activation: str, rngs: nnx.Rngs,
                 time_channels: int | None = None, output_scale: float = 1.0, dtype: Dtype = None):  # fmt: skip
        self.activation, self.output_scale = activation, output_scale
        self.norm1 = GroupNorm(inputs, groups, epsilon, rngs=rngs, dtype=dtype)
        self.conv1 = conv(inputs, outputs, 3, rngs=rngs, dtype=dtype)
        if time_channels is not None:
            self.time_emb_proj = nnx.Linear(time_channels, outputs, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups, epsilon, rngs=rngs, dtype=dtype)
        self.conv2 = conv(outputs, outputs, 3, rngs=rngs, dtype=dtype)
        if inputs != outputs:
            self.conv_shortcut = conv(inputs, outputs, 1, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, time_embedding: jax.Array | None = None) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        h = self.conv1(activation(self.norm1(x)))
        if time_embedding is not None:
            h = h + self.time_emb_proj(activation(time_embedding))[:, None, None, :]
        h = self.conv2(activation(self.norm2(h)))
        shortcut = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        return (shortcut + h) / self.output_scale


class Downsample2D(nnx.Module):
    """Halves the image by a strided convolution; `padding = 0` pads right and bottom only, as diffusers does."""

    def __init__(self, channels: int, padding: int, *, rngs: nnx.Rngs, dtype: Dtype = None):
        pads = ((0, 1), (0, 1)) if padding == 0 else ((padding, padding),) * 2
        self.conv = conv(channels, channels, 3, rngs=rngs, dtype=dtype, stride=2, padding=pads)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample2D(nnx.Module):
    """Enlarges the image to `size` (twice its own by default) by nearest neighbour, then convolves."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.conv = conv(channels, channels, 3, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        doubled = 2 * x.shape[1], 2 * x.shape[2]
        if (size or doubled) == doubled:
            x = x.astype(self.conv.dtype or x.dtype)
            return convolve_doubled(x, self.conv.kernel[...]) + self.conv.bias[...].astype(x.dtype)[None, None, None]
        for axis, target in zip((1, 2), size, strict=True):  # an odd size was halved on the way down
            x = jnp.take(x, jnp.arange(target) * x.shape[axis] // target, axis)
        return self.conv(x)


class Attention(nnx.Module):
    """diffusers' `Attention`: queries from `x`, keys and values from `context` (or `x` itself)."""

    def __init__(self, channels: int, heads: int, *, context_channels: int | None = None, bias: bool = False,
                 rngs: nnx.Rngs, dtype: Dtype = None):  # fmt: skip
        self.heads = heads
        context_channels = context_channels or channels
        self.to_q = nnx.Linear(channels, channels, use_bias=bias, dtype=dtype, rngs=rngs)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=bias, dtype=dtype, rngs=rngs)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=bias, dtype=dtype, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)])

    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        context = x if context is None else context
        q, k, v = (
            h.reshape(*h.shape[:-1], self.heads, -1) for h in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](attend(q, k, v).reshape(x.shape))
