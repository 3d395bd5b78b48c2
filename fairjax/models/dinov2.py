"""DINOv2 (Oquab et al., 2023), as transformers' `Dinov2Model`, under the names of the published files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fairjax.models.attention import attend
from fairjax.models.configs import divides, read_config
from fairjax.models.layers import ACTIVATIONS, MLP, Dtype, layer_norm

_ONLY = {
    "hidden_act": tuple(ACTIVATIONS),
    "hidden_dropout_prob": (0, 0.0),
    "attention_probs_dropout_prob": (0, 0.0),
    "drop_path_rate": (0, 0.0),
}
_CUBIC = -0.75  # PyTorch's coefficient of bicubic interpolation; `jax.image.resize` has -0.5


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """The fields of a DINOv2's `config.json` that change the computation; transformers' defaults."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    use_swiglu_ffn: bool = False
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Dinov2Config:
        """Reads a `config.json`; raises ValueError naming an unsupported field."""
        for name in ("image_size", "patch_size"):
            if not isinstance(fields.get(name, 0), int):
                raise ValueError(f"{cls.__name__}: {name} = {fields[name]!r} is not supported; it must be one number")
        return read_config(cls, fields, _ONLY)

    def __post_init__(self) -> None:
        names = ("num_attention_heads", "hidden_size")
        divides(self.num_attention_heads, self.hidden_size, names, type(self).__name__)


def bicubic(size: int, new: int) -> np.ndarray:
    """The matrix [new, size] of PyTorch's bicubic interpolation (Keys, 1981), edges repeated, without antialiasing."""
    position = (np.arange(new) + 0.5) * size / new - 0.5
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((new, size))
    for tap in range(4):
        x = np.abs(position - first - tap)
        near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
        far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
        matrix[np.arange(new), np.clip(first + tap, 0, size - 1)] += np.where(x <= 1, near, far)
    return matrix


class PatchEmbeddings(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype):
        patch = (config.patch_size, config.patch_size)
        self.projection = nnx.Conv(
            config.num_channels, config.hidden_size, patch, patch, padding="VALID", dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.projection(images)


class Embeddings(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.grid = config.image_size // config.patch_size
        size = config.hidden_size
        self.cls_token = nnx.Param(jnp.zeros((1, 1, size)))
        self.position_embeddings = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, self.grid**2 + 1, size)))
        self.patch_embeddings = PatchEmbeddings(config, rngs=rngs, dtype=dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = self.patch_embeddings(images)
        b, h, w, c = patches.shape
        first = jnp.broadcast_to(self.cls_token[...].astype(patches.dtype), (b, 1, c))
        x = jnp.concatenate([first, patches.reshape(b, h * w, c)], axis=1)
        return x + self._positions(h, w).astype(x.dtype)

    def _positions(self, h: int, w: int) -> jax.Array:
        """Position embeddings [1, 1 + h * w, c], interpolated from those of the images that the network learned on."""
        positions = self.position_embeddings[...]
        if (h, w) == (self.grid, self.grid):
            return positions
        down, across = (bicubic(self.grid, new).astype(np.float32) for new in (h, w))
        grid = positions[0, 1:].astype(jnp.float32).reshape(self.grid, self.grid, -1)
        grid = jnp.einsum("yh,xw,hwc->yxc", down, across, grid, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([positions[:, :1], grid.reshape(1, h * w, -1).astype(positions.dtype)], axis=1)


class SelfAttention(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.heads = config.num_attention_heads
        size = config.hidden_size
        self.query, self.key, self.value = (
            nnx.Linear(size, size, use_bias=config.qkv_bias, dtype=dtype, rngs=rngs) for _ in range(3)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value))
        return attend(q, k, v).reshape(x.shape)


class SelfOutput(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.attention = SelfAttention(config, rngs=rngs, dtype=dtype)
        self.output = SelfOutput(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output.dense(self.attention(x))


class LayerScale(nnx.Module):
    def __init__(self, size: int):
        self.lambda1 = nnx.Param(jnp.ones(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.lambda1[...].astype(x.dtype)[None, None]


class SwiGLU(nnx.Module):
    """What DINOv2 ViT-g/14 has in place of an MLP (Shazeer, 2020), with two thirds of its inner channels."""

    def __init__(self, channels: int, inner: int, *, rngs: nnx.Rngs, dtype: Dtype):
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
        self.weights_in = nnx.Linear(channels, 2 * inner, dtype=dtype, rngs=rngs)
        self.weights_out = nnx.Linear(inner, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, x = jnp.split(self.weights_in(x), 2, axis=-1)
        return self.weights_out(nnx.silu(gate) * x)


def _layer_norm(config: Dinov2Config, rngs: nnx.Rngs, dtype: Dtype) -> nnx.LayerNorm:
    return layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs, dtype=dtype)


class Layer(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.norm1 = _layer_norm(config, rngs, dtype)
        self.attention = Attention(config, rngs=rngs, dtype=dtype)
        self.layer_scale1 = LayerScale(config.hidden_size)
        self.norm2 = _layer_norm(config, rngs, dtype)
        size, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        if config.use_swiglu_ffn:
            self.mlp = SwiGLU(size, inner, rngs=rngs, dtype=dtype)
        else:
            self.mlp = MLP(size, inner, ACTIVATIONS[config.hidden_act], rngs=rngs, dtype=dtype)
        self.layer_scale2 = LayerScale(config.hidden_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Encoder(nnx.Module):
    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.layer = nnx.List([Layer(config, rngs=rngs, dtype=dtype) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layer:
            x = layer(x)
        return x


class Dinov2Model(nnx.Module):
    """`Dinov2Model`: normalised images [b, h, w, 3] of any size -> the embedding [b, hidden_size] of each.

    It is the class token's after the last layer norm (transformers' `pooler_output`), which the image loss compares.
    """

    def __init__(self, config: Dinov2Config, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.embeddings = Embeddings(config, rngs=rngs, dtype=dtype)
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.layernorm = _layer_norm(config, rngs, dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.hidden_states(images)[:, 0]

    def hidden_states(self, images: jax.Array) -> jax.Array:
        """Normalised images [b, h, w, 3] -> the class token's and the patches' states [b, 1 + patches, hidden_size]."""
        return self.layernorm(self.encoder(self.embeddings(images)))
