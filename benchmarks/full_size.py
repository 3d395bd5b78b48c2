"""Stable Diffusion and the paper's judges at their true sizes, with shapes for weights: to trace and to compile."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.adapters import bundle as bundles
from fairjax.config import Experiment
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.evaluation.columns import Setting
from fairjax.faces import detection, released
from fairjax.faces.classifier import Classifier
from fairjax.faces.geometry import MARGINS
from fairjax.faces.judges import FaceEmbedding, Judge, Judges, Semantics
from fairjax.faces.semantics import CLIP, DINOV2
from fairjax.fairness import attributes as fairness
from fairjax.models.blazeface import BlazeFace
from fairjax.models.clip import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from fairjax.models.dinov2 import Dinov2Config, Dinov2Model
from fairjax.models.functional import functional
from fairjax.models.mobilenet import MobileNetV3Config
from fairjax.models.sfnet import SFNet, SFNetConfig
from fairjax.models.unet import UNet2DConditionModel, UNetConfig
from fairjax.models.vae import AutoencoderKL, VAEConfig
from fairjax.pipeline import Pipeline, solver_table
from fairjax.portraits import recipe
from fairjax.training import state as states
from fairjax.training import step as steps


class Sizes(NamedTuple):
    """What the configurations of a published Stable Diffusion say that differs between the two."""

    text: dict[str, Any]
    unet: dict[str, Any]
    scheduler: dict[str, Any]


SD15 = Sizes(
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "hidden_act": "quick_gelu"},
    {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    {},
)  # fmt: skip
SD21 = Sizes(
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
     "hidden_act": "gelu"},
    {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
     "use_linear_projection": True},
    {"prediction_type": "v_prediction"},
)  # fmt: skip
TOKENS = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2}
VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "latent_channels": 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2,
}  # fmt: skip
CLIP_H14 = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip
DINOV2_BASE = {"image_size": 518, "patch_size": 14}
BANK = 10_000
"""How many embeddings of real faces."""


def pipeline(sizes: Sizes = SD15, dtype: str = "float32") -> Pipeline:
    """A Stable Diffusion with shapes for parameters."""
    text, unet = CLIPTextConfig.from_dict(TOKENS | sizes.text), UNetConfig.from_dict(sizes.unet)
    vae, side, number = VAEConfig.from_dict(VAE), unet.sample_size, jnp.dtype(dtype)
    networks = {
        "text_encoder": functional(lambda rngs: CLIPTextModel(text, rngs=rngs)),
        "unet": functional(lambda rngs: UNet2DConditionModel(unet, rngs=rngs, dtype=number)),
        "vae": functional(lambda rngs: AutoencoderKL(vae, rngs=rngs, dtype=number)),
    }
    return Pipeline(
        **networks, tokenizer=SimpleNamespace(model_max_length=TOKENS["max_position_embeddings"]),
        schedule=NoiseSchedule.from_dict(recipe.SCHEDULER | sizes.scheduler), scaling_factor=0.18215,
        latent_shape=(side, side, 4), image_size=(8 * side, 8 * side), folder=Path(), guidance_scale=7.5, dtype=number,
        params={name: network.abstract for name, network in networks.items()},
    )  # fmt: skip


@functools.cache
def judges(dtype: str = "float32") -> Judges:
    """BlazeFace, MobileNetV3-Large, CLIP ViT-H/14, DINOv2 ViT-B/14 and SFNet-20, with shapes for parameters."""
    h14, b14, number = CLIPVisionConfig.from_dict(CLIP_H14), Dinov2Config.from_dict(DINOV2_BASE), jnp.dtype(dtype)
    detector = detection.Detector(functional(lambda rngs: BlazeFace(rngs=rngs)))
    classifier = Classifier.make(MobileNetV3Config.large(8), released.HEADS, 224)
    clip = functional(lambda rngs: CLIPVisionModel(h14, rngs=rngs, dtype=number))
    dino = functional(lambda rngs: Dinov2Model(b14, rngs=rngs, dtype=number))
    face = functional(lambda rngs: SFNet(SFNetConfig(), rngs=rngs))
    params = {
        "judge": {"locator": detector.network.abstract, "classifiers": [classifier.network.abstract]},
        "semantics": [typed(clip.abstract, number), typed(dino.abstract, number)],
        "face": face.abstract,
        "bank": {"embeddings": jax.ShapeDtypeStruct((BANK, 512), jnp.float32)},
    }
    judge = Judge(detector, (classifier,), MARGINS["blazeface"])
    meaning = (Semantics(clip, CLIP, 224), Semantics(dino, DINOV2, 224))
    return Judges(judge, meaning, FaceEmbedding(face, 112, aligned=True), params)


def typed(tree: Any, dtype: jnp.dtype) -> Any:
    """Shapes of another type."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


class Traced(NamedTuple):
    """A training step and the shapes of its arguments."""

    step: steps.Step
    state: states.State
    frozen: steps.Frozen
    batch: steps.Batch


def generation(config: Experiment, mesh: jax.sharding.Mesh, each: int, sizes: Sizes = SD15) -> jax.stages.Lowered:
    """The program that makes the images of an evaluation, `each` of them on every device, adapters merged."""
    setting = Setting.of(config)
    model = pipeline(sizes, config.training.precision)
    return model.lowered(mesh, each, setting.num_steps, setting.guidance_scale)


def training_step(config: Experiment, sizes: Sizes = SD15) -> Traced:
    """The step of one of the paper's experiments."""
    adapter, training, names = config.adapter, config.training, config.target.attributes
    model, judging = pipeline(sizes, training.precision), judges(training.precision)
    weights = fairness.cost_weights(config.target.cost_weights, names, judging.judge.attributes)
    step = steps.Step(model, judging, names, weights, training, config.loss)
    key = jax.random.key(0)

    def start(params: Any) -> states.State:
        return states.initial(bundles.init(adapter.kinds, params, adapter.rank, adapter.num_tokens, key), training)

    params = jax.eval_shape(lambda params: model.compact(params, adapter.kinds), model.params)
    frozen = steps.Frozen(params, judging.params, solver_table(model.schedule, training.solver, training.num_steps[1]))
    prompts = training.prompts_per_step
    ids = [jax.ShapeDtypeStruct((rows, 77), jnp.int32) for rows in (prompts, prompts, 1)]
    cells = int(np.prod([len(released.HEADS[name]) for name in names]))
    wished = jax.ShapeDtypeStruct((prompts, cells), jnp.float32)
    batch = steps.Batch(*ids, wished, jnp.int32(training.num_steps[1]), key)
    return Traced(step, jax.eval_shape(start, model.params), frozen, batch)
