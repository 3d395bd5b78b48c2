"""The autoencoder of Stable Diffusion: diffusers' `AutoencoderKL`, NHWC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.configs import divides, read_config
from fairjax.models.layers import (
    ACTIVATIONS,
    Attention,
    Downsample2D,
    Dtype,
    GroupNorm,
    ResnetBlock2D,
    Upsample2D,
    conv,
)

_EPSILON = 1e-6
_ONLY = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": tuple(ACTIVATIONS),
    "shift_factor": (None, 0, 0.0),
    "latents_mean": (None,),
    "latents_std": (None,),
}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The fields of a diffusers AutoencoderKL `config.json` that change the computation."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> VAEConfig:
        """Reads a diffusers `config.json`; raises ValueError naming a field whose value is not supported."""
        return read_config(cls, fields, _ONLY)

    def __post_init__(self) -> None:
        blocks = len(self.block_out_channels)
        for name, kind in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            if getattr(self, name) != (kind,) * blocks:
                raise ValueError(
                    f"VAEConfig: {name} = {getattr(self, name)} must be {blocks} times {kind}, "
                    "as often as block_out_channels"
                )
        for channels in self.block_out_channels:
            divides(self.norm_num_groups, channels, ("norm_num_groups", "block_out_channels"), "VAEConfig")

    @property
    def downscale(self) -> int:
        """How many pixels of the image's side one latent covers."""
        return 2 ** (len(self.block_out_channels) - 1)


class Posterior(NamedTuple):
    """The encoder's diagonal Gaussian over unscaled latents."""

    mean: jax.Array  # [b, h, w, latent_channels]
    log_variance: jax.Array  # [b, h, w, latent_channels], clipped to [-30, 20]

    def sample(self, key: jax.Array) -> jax.Array:
        return self.mean + jnp.exp(0.5 * self.log_variance) * jax.random.normal(key, self.mean.shape)

    def kl(self) -> jax.Array:
        """Kullback-Leibler divergence to the standard normal, per image [b], in nats."""
        terms = self.mean**2 + jnp.exp(self.log_variance) - 1 - self.log_variance
        return 0.5 * terms.sum(axis=(1, 2, 3))


class VAEAttention(Attention):
    """Single-head attention over all positions, normalised before and added to its input."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, dtype: Dtype):
        super().__init__(channels, 1, bias=True, rngs=rngs, dtype=dtype)
        self.group_norm = GroupNorm(channels, groups, _EPSILON, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        b, h, w, c = x.shape
        return x + super().__call__(self.group_norm(x).reshape(b, h * w, c)).reshape(x.shape)


class Block(nnx.Module):
    """Residual blocks at one resolution, then a resampler; the middle block attends after its first."""

    def __init__(self, config: VAEConfig, widths: list[int], *, rngs: nnx.Rngs, dtype: Dtype, attends: bool = False,
                 **samplers: nnx.Module):  # fmt: skip
        self.resnets = nnx.List([
            ResnetBlock2D(i, o, groups=config.norm_num_groups, epsilon=_EPSILON, activation=config.act_fn,
                          rngs=rngs, dtype=dtype)
            for i, o in zip(widths[:-1], widths[1:], strict=True)
        ])  # fmt: skip
        if attends:
            self.attentions = nnx.List([VAEAttention(widths[0], config.norm_num_groups, rngs=rngs, dtype=dtype)])
        self.samplers = tuple(samplers)
        for name, sampler in samplers.items():
            setattr(self, name, nnx.List([sampler]))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x)
            if layer == 0 and hasattr(self, "attentions"):
                x = self.attentions[0](x)
        for name in self.samplers:
            x = getattr(self, name)[0](x)
        return x


class Encoder(nnx.Module):
    """Ends with SiLU, as the decoder does, whatever `act_fn` the residual blocks have: diffusers' fixed choice."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: Dtype):
        common = {"rngs": rngs, "dtype": dtype}
        channels = config.block_out_channels
        self.conv_in = conv(config.in_channels, channels[0], 3, **common)
        self.down_blocks = nnx.List([])
        for before, width in zip((channels[0], *channels), channels, strict=False):
            last = len(self.down_blocks) == len(channels) - 1
            sampler = {} if last else {"downsamplers": Downsample2D(width, 0, **common)}
            self.down_blocks.append(Block(config, [before] + [width] * config.layers_per_block, **common, **sampler))
        self.mid_block = Block(config, [channels[-1]] * 3, attends=config.mid_block_add_attention, **common)
        self.conv_norm_out = GroupNorm(channels[-1], config.norm_num_groups, _EPSILON, **common)
        self.conv_out = conv(channels[-1], 2 * config.latent_channels, 3, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: Dtype):
        common = {"rngs": rngs, "dtype": dtype}
        channels = config.block_out_channels[::-1]
        self.conv_in = conv(config.latent_channels, channels[0], 3, **common)
        self.mid_block = Block(config, [channels[0]] * 3, attends=config.mid_block_add_attention, **common)
        self.up_blocks = nnx.List([])
        for before, width in zip((channels[0], *channels), channels, strict=False):
            last = len(self.up_blocks) == len(channels) - 1
            sampler = {} if last else {"upsamplers": Upsample2D(width, **common)}
            widths = [before] + [width] * (config.layers_per_block + 1)
            self.up_blocks.append(Block(config, widths, **common, **sampler))
        self.conv_norm_out = GroupNorm(channels[-1], config.norm_num_groups, _EPSILON, **common)
        self.conv_out = conv(channels[-1], config.out_channels, 3, **common)

    def __call__(self, z: jax.Array) -> jax.Array:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Images [b, H, W, 3] in [-1, 1] to latents [b, H / downscale, W / downscale, c] and back.

    Latents here are unscaled: the diffusion model works on `latents * config.scaling_factor`.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)
        c = config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = conv(2 * c, 2 * c, 1, rngs=rngs, dtype=dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = conv(c, c, 1, rngs=rngs, dtype=dtype)

    def encode(self, images: jax.Array) -> Posterior:
        moments = self.encoder(images)
        if hasattr(self, "quant_conv"):
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30, 20))

    def decode(self, latents: jax.Array) -> jax.Array:
        if hasattr(self, "post_quant_conv"):
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)
