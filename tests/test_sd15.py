"""The paper's experiments: each traces at Stable Diffusion's size, and runs through detector, crops and all losses."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import CONFIGS, draw_over, finetuning_of, photograph

from fairjax import parallel
from fairjax.adapters import bundle as bundles
from fairjax.config import Experiment
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.faces import detection, released
from fairjax.faces.classifier import Classifier
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
from fairjax.schema import load
from fairjax.training import state as states
from fairjax.training import step as steps


def test_variants_of_an_experiment_differ_in_what_is_trained_alone():
    by_number = {}
    for path in CONFIGS:
        fields = load(Experiment, path, {}).model_dump()
        assert fields.pop("output") == f"runs/{path.stem}"
        by_number.setdefault(path.stem.partition("-")[0], []).append((fields["adapter"].pop("kinds"), fields))
    assert sorted(by_number) == [f"exp{number}" for number in range(1, 7)]
    variants = [("text_encoder",), ("text_encoder", "unet"), ("unet",)]
    for number, experiments in by_number.items():
        kinds, fields = zip(*experiments, strict=True)
        assert sorted(kinds) == ([("soft_prompt",)] if number == "exp2" else variants), number
        assert all(other == fields[0] for other in fields), number


# Traced, not run: shapes in place of weights.


@functools.cache
def full_size():
    """Stable Diffusion 1.5 and the paper's judges, with shapes for parameters."""
    text = CLIPTextConfig.from_dict(
        {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
         "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "eos_token_id": 2}
    )  # fmt: skip
    unet = UNetConfig.from_dict({"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8})
    vae = VAEConfig.from_dict(
        {"block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
         "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4, "sample_size": 512}
    )  # fmt: skip
    networks = {
        "text_encoder": functional(lambda rngs: CLIPTextModel(text, rngs=rngs)),
        "unet": functional(lambda rngs: UNet2DConditionModel(unet, rngs=rngs)),
        "vae": functional(lambda rngs: AutoencoderKL(vae, rngs=rngs)),
    }
    schedule = NoiseSchedule.from_dict(recipe.SCHEDULER)
    params = {name: network.abstract for name, network in networks.items()}
    pipeline = Pipeline(
        **networks, tokenizer=None, schedule=schedule, scaling_factor=0.18215, latent_shape=(64, 64, 4),
        image_size=(512, 512), params=params, folder=Path(),
    )  # fmt: skip
    return pipeline, _full_size_judges()


def _full_size_judges():
    h14 = CLIPVisionConfig.from_dict(
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
         "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"}
    )  # fmt: skip
    b14 = Dinov2Config.from_dict({"image_size": 518, "patch_size": 14})
    detector = detection.Detector(functional(lambda rngs: BlazeFace(rngs=rngs)))
    classifier = Classifier.make(MobileNetV3Config.large(8), released.HEADS, 224)
    clip = functional(lambda rngs: CLIPVisionModel(h14, rngs=rngs))
    dino = functional(lambda rngs: Dinov2Model(b14, rngs=rngs))
    face = functional(lambda rngs: SFNet(SFNetConfig(), rngs=rngs))
    params = {
        "judge": {"locator": detector.network.abstract, "classifiers": [classifier.network.abstract]},
        "semantics": [clip.abstract, dino.abstract],
        "face": face.abstract,
        "bank": {"embeddings": jax.ShapeDtypeStruct((10_000, 512), jnp.float32)},
    }
    judge = Judge(detector, (classifier,), 0.5)
    meaning = (Semantics(clip, CLIP, 224), Semantics(dino, DINOV2, 224))
    return Judges(judge, meaning, FaceEmbedding(face, 112, aligned=True), params)


def is_traced_by_default(path):
    """The one with the most in it; the others take some of the same paths, and minutes together."""
    return path.stem == "exp4-gender-race-age-both"


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if is_traced_by_default(path) else pytest.mark.slow) for path in CONFIGS],
    ids=lambda path: path.stem,
)
def test_the_training_step_traces_at_full_size_on_eight_devices(path):
    config, (pipeline, judges) = load(Experiment, path, {}), full_size()
    adapter, training, names = config.adapter, config.training, config.target.attributes
    weights = fairness.cost_weights(config.target.cost_weights, names, judges.judge.attributes)
    program = steps.program(steps.Step(pipeline, judges, names, weights, training, config.loss), parallel.mesh(8))
    key = jax.random.key(0)
    state = jax.eval_shape(
        lambda params: states.initial(
            bundles.init(adapter.kinds, params, adapter.rank, adapter.num_tokens, key), training
        ),
        pipeline.params,
    )
    frozen = steps.Frozen(pipeline.params, judges.params, solver_table(pipeline.schedule, training.num_steps[1]))
    ids = [jax.ShapeDtypeStruct((rows, 77), jnp.int32) for rows in (1, 1, 1, 1)]
    cells = np.prod([len(released.HEADS[name]) for name in names])
    batch = steps.Batch(*ids, jax.ShapeDtypeStruct((1, cells), jnp.float32), jnp.int32(20), key)
    after, scalars, images = jax.eval_shape(program, state, frozen, batch)
    assert images.shape == (training.images_per_prompt, 512, 512, 3)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert scalars["loss"].shape == ()


# Run, at reduced width.


def test_two_steps_of_experiment_4_with_every_loss_on(models, monkeypatch):
    draw_over(photograph()[None], monkeypatch)
    finetuning = finetuning_of(models, "exp4-gender-race-age-both")
    told = []
    before = jax.device_get(finetuning.initial().bundle)
    after = jax.device_get(finetuning.run(on_step=lambda progress: told.append(progress.scalars)).bundle)
    for scalars in told:
        assert all(np.isfinite(value) for value in scalars.values()), scalars
        assert scalars["faces"] == scalars["targeted"] == 1
        assert scalars["loss/fairness"] > 1 and scalars["loss/face"] > 0.01 and scalars["gradient_norm"] > 0
    assert told[0]["loss/image"] == pytest.approx(0, abs=1e-6)  # adapters that change nothing yet
    assert told[1]["loss/image"] > 1e-6
    assert after.keys() == {"text_encoder", "unet"}
    for kind in after:
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before[kind], after[kind])
        assert min(jax.tree.leaves(moved)) > 0, kind


def test_without_a_face_nothing_is_asked_of_it(models, monkeypatch):
    """Grey pictures: no face, no target, no face loss; only what they mean is kept."""
    drawn = Pipeline.decode
    monkeypatch.setattr(Pipeline, "decode", lambda self, params, latents: 0.01 * drawn(self, params, latents))
    finetuning = finetuning_of(models, "exp2-gender-soft-tokens", **{"training.steps": 1})
    told = []
    state = finetuning.run(on_step=lambda progress: told.append(progress.scalars))
    (scalars,) = told
    assert scalars["faces"] == scalars["targeted"] == scalars["loss/fairness"] == scalars["loss/face"] == 0
    assert scalars["prompts_without_target"] == 1 and np.isfinite(scalars["loss"])
    assert scalars["loss/image"] > 0  # soft tokens change the prompt from the start
    assert int(state.skipped) == 0 and scalars["gradient_norm"] > 0
