"""CLIP's text and vision towers, as transformers' `CLIPTextModel`, `CLIPVisionModelWithProjection` and `CLIPModel`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fairjax.models.attention import attend
from fairjax.models.configs import divides, read_config
from fairjax.models.layers import ACTIVATIONS, MLP, Dtype, layer_norm
from fairjax.schema_errors import shown

_ACTIVATIONS = ACTIVATIONS | {"quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x)}
_ONLY = {
    "hidden_act": ("quick_gelu", "gelu"),
    "attention_dropout": (0, 0.0),
    "dropout": (0, 0.0),
    "use_attention_mask": (None, False),  # with it, diffusers hides the padding from the text encoder
}
_LEGACY_EOS = 2
"""The `eos_token_id` that older configs hold by mistake; with it the highest id marks the end of the text."""


def _tower(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One tower's fields of a `config.json`: of both towers, which project to one common size, or of that one.

    As in transformers, `<name>_dict` (what its first releases wrote) rules where it is given, and a part that is
    null holds the defaults.
    """
    both = [key for key in (f"{name}_dict", name) if key in fields]
    if not both:
        return fields
    part = next((fields[key] for key in both if fields[key] is not None), {})
    if not isinstance(part, Mapping):
        raise ValueError(f"{name} = {shown(part)} must be a mapping of fields")
    return {**part, **{key: fields[key] for key in ("projection_dim",) if key in fields}}


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """The fields of a CLIP text encoder's `config.json` that change the computation; transformers' defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CLIPTextConfig:
        """Reads a `config.json`, or its `text_config`; raises ValueError naming an unsupported field."""
        return read_config(cls, _tower(fields, "text_config"), _ONLY)

    def __post_init__(self) -> None:
        _check_heads(self)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """The fields of a CLIP vision tower's `config.json` that change the computation; transformers' defaults."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> CLIPVisionConfig:
        """Reads a `config.json`, or its `vision_config`; raises ValueError naming an unsupported field."""
        return read_config(cls, _tower(fields, "vision_config"), _ONLY)

    def __post_init__(self) -> None:
        _check_heads(self)
        divides(self.patch_size, self.image_size, ("patch_size", "image_size"), type(self).__name__)


def _check_heads(config: Config) -> None:
    names = ("num_attention_heads", "hidden_size")
    divides(config.num_attention_heads, config.hidden_size, names, type(config).__name__)


Config = CLIPTextConfig | CLIPVisionConfig


class CLIPAttention(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.heads = config.num_attention_heads
        size = config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nnx.Linear(size, size, dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: jax.Array, causal: bool) -> jax.Array:
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attend(q, k, v, is_causal=causal).reshape(x.shape))


def _layer_norm(config: Config, rngs: nnx.Rngs, dtype: Dtype) -> nnx.LayerNorm:
    return layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs, dtype=dtype)


class CLIPEncoderLayer(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Dtype):
        self.layer_norm1 = _layer_norm(config, rngs, dtype)
        self.self_attn = CLIPAttention(config, rngs=rngs, dtype=dtype)
        self.layer_norm2 = _layer_norm(config, rngs, dtype)
        activation = _ACTIVATIONS[config.hidden_act]
        self.mlp = MLP(config.hidden_size, config.intermediate_size, activation, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, causal: bool) -> jax.Array:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs, dtype: Dtype):
        layers = range(config.num_hidden_layers)
        self.layers = nnx.List([CLIPEncoderLayer(config, rngs=rngs, dtype=dtype) for _ in layers])

    def __call__(self, x: jax.Array, causal: bool) -> jax.Array:
        for layer in self.layers:
            x = layer(x, causal)
        return x


class TextEmbeddings(nnx.Module):
    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: Dtype):
        size = config.hidden_size
        self.token_embedding = nnx.Embed(config.vocab_size, size, dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(config.max_position_embeddings, size, dtype=dtype, rngs=rngs)

    def __call__(self, input_ids: jax.Array, inputs_embeds: jax.Array | None) -> jax.Array:
        tokens = self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        length, most = tokens.shape[1], self.position_embedding.num_embeddings
        if length > most:  # indexing would give NaN
            raise ValueError(f"{length} tokens are more than the text encoder's max_position_embeddings = {most}")
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))[None]


class TextOutput(NamedTuple):
    last_hidden_state: jax.Array  # [b, length, hidden_size], after the final layer norm
    pooler_output: jax.Array  # [b, hidden_size], at the end of the text


class TextTransformer(nnx.Module):
    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: Dtype):
        self.eos_token_id = config.eos_token_id
        self.embeddings = TextEmbeddings(config, rngs=rngs, dtype=dtype)
        self.encoder = CLIPEncoder(config, rngs=rngs, dtype=dtype)
        self.final_layer_norm = _layer_norm(config, rngs, dtype)

    def __call__(self, input_ids: jax.Array, inputs_embeds: jax.Array | None = None) -> TextOutput:
        x = self.encoder(self.embeddings(input_ids, inputs_embeds), causal=True)
        x = self.final_layer_norm(x)
        marks = input_ids if self.eos_token_id == _LEGACY_EOS else (input_ids == self.eos_token_id).astype(jnp.int32)
        end = jnp.argmax(marks, axis=-1)  # the first of equals
        return TextOutput(x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])


class CLIPTextModel(nnx.Module):
    """`(input_ids [b, length]) -> TextOutput`; `inputs_embeds` [b, length, hidden_size] replaces token embeddings."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.text_model = TextTransformer(config, rngs=rngs, dtype=dtype)

    def __call__(self, input_ids: jax.Array, inputs_embeds: jax.Array | None = None) -> TextOutput:
        return self.text_model(input_ids, inputs_embeds)


class CLIPTextEmbedding(nnx.Module):
    """`CLIPTextModelWithProjection`: token ids [b, length] -> text embeddings [b, projection_dim], not normalised."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.text_model = TextTransformer(config, rngs=rngs, dtype=dtype)
        self.text_projection = nnx.Linear(
            config.hidden_size, config.projection_dim, use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        return self.text_projection(self.text_model(input_ids).pooler_output)


class VisionEmbeddings(nnx.Module):
    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: Dtype):
        size, patch = config.hidden_size, (config.patch_size, config.patch_size)
        self.image_size = config.image_size
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (size,)) * size**-0.5)
        self.patch_embedding = nnx.Conv(
            config.num_channels, size, patch, patch, padding="VALID", use_bias=False, dtype=dtype, rngs=rngs
        )
        positions = (config.image_size // config.patch_size) ** 2 + 1
        self.position_embedding = nnx.Embed(positions, size, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        if images.shape[1:3] != (self.image_size, self.image_size):  # indexing positions would give NaN
            height, width = images.shape[1:3]
            raise ValueError(f"images of {height} x {width} pixels: the vision tower's image_size is {self.image_size}")
        patches = self.patch_embedding(images)
        b, h, w, c = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype)[None, None], (b, 1, c))
        x = jnp.concatenate([first, patches.reshape(b, h * w, c)], axis=1)
        return x + self.position_embedding(jnp.arange(h * w + 1))[None]


class VisionTransformer(nnx.Module):
    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: Dtype):
        self.embeddings = VisionEmbeddings(config, rngs=rngs, dtype=dtype)
        self.pre_layrnorm = _layer_norm(config, rngs, dtype)  # transformers' spelling
        self.encoder = CLIPEncoder(config, rngs=rngs, dtype=dtype)
        self.post_layernorm = _layer_norm(config, rngs, dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.encoder(self.pre_layrnorm(self.embeddings(images)), causal=False)
        return self.post_layernorm(x[:, 0])


class CLIPVisionModel(nnx.Module):
    """`CLIPVisionModelWithProjection`: normalised images [b, h, w, 3] -> image embeddings [b, projection_dim]."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.vision_model = VisionTransformer(config, rngs=rngs, dtype=dtype)
        self.visual_projection = nnx.Linear(
            config.hidden_size, config.projection_dim, use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.visual_projection(self.vision_model(images))


class CLIPModel(nnx.Module):
    """Both towers and their common space, as contrastive pretraining wants them (Radford et al., 2021)."""

    def __init__(self, text: CLIPTextConfig, vision: CLIPVisionConfig, *, rngs: nnx.Rngs, dtype: Dtype = None):
        self.text_model = TextTransformer(text, rngs=rngs, dtype=dtype)
        self.vision_model = VisionTransformer(vision, rngs=rngs, dtype=dtype)
        self.visual_projection = nnx.Linear(
            vision.hidden_size, vision.projection_dim, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.text_projection = nnx.Linear(text.hidden_size, text.projection_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(2.6592))  # log(1 / 0.07)

    def get_text_features(self, input_ids: jax.Array) -> jax.Array:
        """Token ids [b, length] -> text embeddings [b, projection_dim], not normalised."""
        return self.text_projection(self.text_model(input_ids).pooler_output)

    def get_image_features(self, images: jax.Array) -> jax.Array:
        """Normalised images [b, h, w, 3] -> image embeddings [b, projection_dim], not normalised."""
        return self.visual_projection(self.vision_model(images))

    def get_text_hidden_states(self, input_ids: jax.Array) -> jax.Array:
        """Token ids [b, length] -> the text tower's last hidden states [b, length, hidden_size]."""
        return self.text_model(input_ids).last_hidden_state
