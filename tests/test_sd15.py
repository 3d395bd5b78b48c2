"""The paper's experiments: each traces at Stable Diffusion's size, and runs through detector, crops and all losses."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from small_models import CONFIGS, draw_over_photos, finetuning_of, over, photograph, small_config

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
from fairjax.training.plan import dry_run

EVERY_EXPERIMENT = pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem == "exp4-gender-race-age-both" else pytest.mark.slow)
        for path in CONFIGS
    ],
    ids=lambda path: path.stem,
)
"""By default the one with the most in it; the others take some of the same paths, and many minutes together."""


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


def full_size(sizes):
    """A Stable Diffusion with shapes for parameters."""
    tokens = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2}
    text, unet = CLIPTextConfig.from_dict(tokens | sizes.text), UNetConfig.from_dict(sizes.unet)
    vae = VAEConfig.from_dict(
        {"block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
         "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4}
    )  # fmt: skip
    networks = {
        "text_encoder": functional(lambda rngs: CLIPTextModel(text, rngs=rngs)),
        "unet": functional(lambda rngs: UNet2DConditionModel(unet, rngs=rngs)),
        "vae": functional(lambda rngs: AutoencoderKL(vae, rngs=rngs)),
    }
    side = unet.sample_size
    return Pipeline(
        **networks, tokenizer=None, schedule=NoiseSchedule.from_dict(recipe.SCHEDULER | sizes.scheduler),
        scaling_factor=0.18215, latent_shape=(side, side, 4), image_size=(8 * side, 8 * side),
        params={name: network.abstract for name, network in networks.items()}, folder=Path(),
    )  # fmt: skip


@functools.cache
def full_size_judges():
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


def check_trace(config, pipeline, judges):
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
    assert images.shape == (training.images_per_prompt, *pipeline.image_size, 3)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert scalars["loss"].shape == ()


@EVERY_EXPERIMENT
def test_the_training_step_traces_at_full_size_on_eight_devices(path):
    check_trace(load(Experiment, path, {}), full_size(SD15), full_size_judges())


@pytest.mark.slow
def test_stable_diffusion_2_1_runs_by_its_name_alone():
    """Other text encoder, heads, projections, prediction and size; the experiment is the same."""
    path = next(path for path in CONFIGS if path.stem == "exp4-gender-race-age-both")
    check_trace(load(Experiment, path, {}), full_size(SD21), full_size_judges())


# Run, at reduced width.


@pytest.fixture(scope="module")
def ready(models):
    """Name of an experiment -> its finetuning with the small models, whose programs are compiled once."""
    return functools.cache(lambda name: finetuning_of(models, name))


def take(finetuning, state, number, photos):
    batch, _ = finetuning.batch(number, state.bundle)
    with pytest.MonkeyPatch.context() as monkeypatch:  # no longer: the dry runs below draw what they really would
        draw_over_photos(monkeypatch)
        state, scalars, _ = finetuning._program(state, over(finetuning._frozen, photos), batch)
    return state, {name: float(value) for name, value in scalars.items()}


@EVERY_EXPERIMENT
def test_two_steps_at_reduced_width_with_every_loss_on(path, ready):
    finetuning = ready(path.stem)
    kinds = finetuning.config.adapter.kinds
    state = start = finetuning.initial()
    told = []
    for number in range(2):
        state, scalars = take(finetuning, state, number, photograph()[None])
        assert all(np.isfinite(value) for value in scalars.values()), scalars
        assert scalars["faces"] == scalars["targeted"] == 1
        assert scalars["loss/fairness"] > 0.1 and scalars["loss/face"] > 0.01 and scalars["gradient_norm"] > 0
        told.append(scalars)
    if "soft_prompt" not in kinds:  # which changes the prompt from the start
        assert told[0]["loss/image"] == pytest.approx(0, abs=1e-6)  # adapters that change nothing yet
    assert told[1]["loss/image"] > 1e-6
    assert set(state.bundle) == set(kinds)
    for kind in kinds:
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start.bundle[kind], state.bundle[kind])
        assert min(jax.tree.leaves(moved)) > 0, kind


@EVERY_EXPERIMENT
def test_without_a_face_nothing_is_asked_of_it(path, ready):
    """Grey pictures: no face, no target, no face loss; only what they mean is kept."""
    finetuning = ready(path.stem)
    state, _ = take(finetuning, finetuning.initial(), 0, photograph()[None])  # now its images are not the frozen ones
    state, scalars = take(finetuning, state, 1, np.zeros_like(photograph()[None]))
    assert scalars["faces"] == scalars["targeted"] == scalars["loss/fairness"] == scalars["loss/face"] == 0
    assert scalars["prompts_without_target"] == 1 and np.isfinite(scalars["loss"])
    assert scalars["loss/image"] > 0
    assert int(state.skipped) == 0 and scalars["gradient_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_dry_run_against_local_models(path, models, tmp_path):
    config = small_config(models, path.stem, output=str(tmp_path / "run"), **{"training.images_per_prompt": 8})
    console = Console(record=True, width=160)
    dry_run(config, False, console)
    told = console.export_text()
    for said in ("to download              │ nothing", "memory of a device", "1 prompts x 8, 2 to 2 solver steps"):
        assert said in told, told
    assert not (tmp_path / "run").exists()
