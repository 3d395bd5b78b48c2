"""The UNet of Stable Diffusion 1.x and 2.x: diffusers' `UNet2DConditionModel`, NHWC.

Attribute paths equal the PyTorch module names, so that `fairjax.convert.rules` converts every weight by rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.configs import divides, per_block, read_config
from fairjax.models.layers import (
    ACTIVATIONS,
    Attention,
    Downsample2D,
    Dtype,
    GroupNorm,
    Identity,
    ResnetBlock2D,
    Upsample2D,
    conv,
    layer_norm,
)

_ONLY = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": tuple(ACTIVATIONS),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "dropout": (0, 0.0),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),  # diffusers refuses it too: attention_head_dim is the number of heads
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "reverse_transformer_layers_per_block": (None,),
}
_DOWN, _UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The fields of a diffusers UNet `config.json` that change the computation; the defaults are diffusers'."""

    sample_size: int | tuple[int, int] | None = None  # of the latents: a side, or height and width
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8  # historical: the number of heads, not their width
    use_linear_projection: bool = False
    time_embedding_dim: int | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> UNetConfig:
        """Reads a diffusers `config.json`; raises ValueError naming a field whose value is not supported."""
        return read_config(cls, fields, _ONLY)

    def __post_init__(self) -> None:
        blocks = len(self.block_out_channels)
        for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            types = getattr(self, name)
            if len(types) != blocks or not set(types) <= set(known):
                raise ValueError(
                    f"UNetConfig: {name} = {types} must be {blocks} of {' and '.join(known)}, "
                    "as many as block_out_channels"
                )
        for channels in self.block_out_channels:
            divides(self.norm_num_groups, channels, ("norm_num_groups", "block_out_channels"), "UNetConfig")
        for channels, heads in zip(
            self.attended("block_out_channels"), self.attended("attention_head_dim"), strict=True
        ):
            divides(heads, channels, ("attention_head_dim", "block_out_channels"), "UNetConfig")
        for name in ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block"):
            self.block(name)  # raises, too

    def block(self, name: str) -> tuple[Any, ...]:
        """The values of the field `name`, one for each block on the way down."""
        return per_block(getattr(self, name), len(self.block_out_channels), f"UNetConfig: {name}")

    def attended(self, name: str) -> tuple[Any, ...]:
        """The same of those blocks that have attention, on the way down, in the middle or on the way up."""
        kinds = zip(self.down_block_types[:-1], self.up_block_types[:0:-1], strict=True)
        there = [any(kind.startswith("CrossAttn") for kind in both) for both in kinds]
        return tuple(value for value, own in zip(self.block(name), [*there, True], strict=True) if own)


def timestep_embedding(timesteps: jax.Array, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> jax.Array:
    """Sinusoidal embedding [b, channels] (float32) of timesteps [b] (diffusers' `get_timestep_embedding`)."""
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, channels % 2)))


class TimestepEmbedding(nnx.Module):
    def __init__(self, inputs: int, outputs: int, activation: str, *, rngs: nnx.Rngs, dtype: Dtype):
        self.activation = activation
        self.linear_1 = nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(outputs, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(ACTIVATIONS[self.activation](self.linear_1(x)))


class GEGLU(nnx.Module):
    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.proj = nnx.Linear(inputs, 2 * outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h, gate = jnp.split(self.proj(x), 2, axis=-1)
        return h * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        inner = 4 * channels
        self.net = nnx.List([
            GEGLU(channels, inner, rngs=rngs, dtype=dtype),
            Identity(),
            nnx.Linear(inner, channels, dtype=dtype, rngs=rngs),
        ])  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    def __init__(self, channels: int, heads: int, context_channels: int, *, rngs: nnx.Rngs, dtype: Dtype):
        self.norm1 = layer_norm(channels, 1e-5, rngs=rngs, dtype=dtype)
        self.attn1 = Attention(channels, heads, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(channels, 1e-5, rngs=rngs, dtype=dtype)
        self.attn2 = Attention(channels, heads, context_channels=context_channels, rngs=rngs, dtype=dtype)
        self.norm3 = layer_norm(channels, 1e-5, rngs=rngs, dtype=dtype)
        self.ff = FeedForward(channels, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        x = as_many(x + self.attn1(self.norm1(x)), context)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nnx.Module):
    def __init__(self, config: UNetConfig, channels: int, heads: int, context_channels: int, depth: int, *,
                 rngs: nnx.Rngs, dtype: Dtype):  # fmt: skip
        self.norm = GroupNorm(channels, config.norm_num_groups, 1e-6, rngs=rngs, dtype=dtype)
        project = (
            (lambda: nnx.Linear(channels, channels, dtype=dtype, rngs=rngs))
            if config.use_linear_projection
            else (lambda: conv(channels, channels, 1, rngs=rngs, dtype=dtype))
        )
        self.proj_in = project()
        self.transformer_blocks = nnx.List(
            [BasicTransformerBlock(channels, heads, context_channels, rngs=rngs, dtype=dtype) for _ in range(depth)]
        )
        self.proj_out = project()

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            y = block(y, context)
        return as_many(x, y) + self.proj_out(y.reshape(len(y), h, w, c))


class Block(nnx.Module):
    """One resolution on the way down, at the bottom, or on the way up: residual blocks, each followed by a
    transformer if the block attends, and a resampler unless it is the last."""

    def __init__(self, config: UNetConfig, stage: int, inputs: list[int], *, attends: bool, sampler: nnx.Module | None,
                 samplers: str, rngs: nnx.Rngs, dtype: Dtype, output_scale: float = 1.0):  # fmt: skip
        outputs = config.block_out_channels[stage]
        self.resnets = nnx.List([
            ResnetBlock2D(i, outputs, groups=config.norm_num_groups, epsilon=config.norm_eps, activation=config.act_fn,
                          time_channels=time_channels(config), output_scale=output_scale, rngs=rngs, dtype=dtype)
            for i in inputs
        ])  # fmt: skip
        if attends:
            heads, context, depth = (
                config.block(name)[stage]
                for name in ("attention_head_dim", "cross_attention_dim", "transformer_layers_per_block")
            )
            count = len(inputs) - (samplers == "")  # the middle block ends with a residual block
            self.attentions = nnx.List(
                [
                    Transformer2DModel(config, outputs, heads, context, depth, rngs=rngs, dtype=dtype)
                    for _ in range(count)
                ]
            )
        if sampler is not None:
            setattr(self, samplers, nnx.List([sampler]))

    def attend(self, layer: int, x: jax.Array, context: jax.Array) -> jax.Array:
        return self.attentions[layer](x, context) if hasattr(self, "attentions") else x


def as_many(x: jax.Array, others: jax.Array) -> jax.Array:
    """`x` as often, one copy after the other, as makes as many rows as the others have."""
    return x if len(x) == len(others) else jnp.concatenate([x] * (len(others) // len(x)))


def time_channels(config: UNetConfig) -> int:
    return config.time_embedding_dim or 4 * config.block_out_channels[0]


class UNet2DConditionModel(nnx.Module):
    """Predicts the noise (or the velocity) in noisy latents, given the encoded prompt."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.config, self.dtype = config, dtype
        channels, stages, common = (
            config.block_out_channels,
            len(config.block_out_channels),
            {"rngs": rngs, "dtype": dtype},
        )
        layers = config.block("layers_per_block")
        self.conv_in = conv(config.in_channels, channels[0], 3, **common)
        self.time_embedding = TimestepEmbedding(channels[0], time_channels(config), config.act_fn, **common)

        self.down_blocks, skips, width = nnx.List([]), [channels[0]], channels[0]
        for stage, kind in enumerate(config.down_block_types):
            inputs = [width] + [channels[stage]] * (layers[stage] - 1)
            width, last = channels[stage], stage == stages - 1
            sampler = None if last else Downsample2D(width, config.downsample_padding, **common)
            self.down_blocks.append(Block(config, stage, inputs, attends=kind.startswith("CrossAttn"),
                                          sampler=sampler, samplers="downsamplers", **common))  # fmt: skip
            skips += [width] * (layers[stage] + (not last))

        self.mid_block = Block(config, stages - 1, [width] * 2, attends=True, sampler=None, samplers="",
                               output_scale=config.mid_block_scale_factor, **common)  # fmt: skip

        self.up_blocks = nnx.List([])
        for stage, kind in zip(reversed(range(stages)), config.up_block_types, strict=True):
            inputs = [
                before + skips.pop() for before in [width] + [channels[stage]] * layers[stage]
            ]  # each residual block also takes what the way down left at its resolution
            width = channels[stage]
            sampler = Upsample2D(width, **common) if stage > 0 else None
            self.up_blocks.append(Block(config, stage, inputs, attends=kind.startswith("CrossAttn"),
                                        sampler=sampler, samplers="upsamplers", **common))  # fmt: skip

        self.conv_norm_out = GroupNorm(channels[0], config.norm_num_groups, config.norm_eps, **common)
        self.conv_out = conv(channels[0], config.out_channels, 3, **common)

    def __call__(self, latents: jax.Array, timesteps: jax.Array, encoder_hidden_states: jax.Array) -> jax.Array:
        """The model output [k b, h, w, out_channels] in float32.

        Args:
            latents: [b, h, w, in_channels], scaled as the noise schedule says.
            timesteps: [b], integers of the training schedule.
            encoder_hidden_states: [k b, length, cross_attention_dim], from the text encoder: of all images once, then
                of all again. What comes before a first word is looked at is then computed once, not k times.
        """
        config = self.config
        context = encoder_hidden_states.astype(self.dtype) if self.dtype else encoder_hidden_states
        time = self.time_embedding(
            timestep_embedding(timesteps, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        )
        x = self.conv_in(2 * latents - 1 if config.center_input_sample else latents)

        skips = [x]
        for block in self.down_blocks:
            for layer, resnet in enumerate(block.resnets):
                x = block.attend(layer, resnet(x, as_many(time, x)), context)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                skips.append(x)

        x = self.mid_block.attend(0, self.mid_block.resnets[0](x, as_many(time, x)), context)
        time = as_many(time, x)
        x = self.mid_block.resnets[1](x, time)

        for block in self.up_blocks:
            for layer, resnet in enumerate(block.resnets):
                x = block.attend(layer, resnet(jnp.concatenate([x, as_many(skips.pop(), x)], axis=-1), time), context)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](x, skips[-1].shape[1:3])

        x = ACTIVATIONS[config.act_fn](self.conv_norm_out(x))
        return self.conv_out(x).astype(jnp.float32)
