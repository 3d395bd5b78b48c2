"""The paper's experiments: each traces at Stable Diffusion's size, and runs through detector, crops and all losses."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_world
from rich.console import Console
from small_models import CONFIGS, PHOTOS, draw_over_photos, finetuning_of, over, photograph, small_config

from benchmarks import full_size
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.schema import load
from fairjax.training import step as steps
from fairjax.training.finetuning import Finetuning
from fairjax.training.plan import dry_run

EXPERIMENTS = [
    pytest.param(path, marks=() if path.stem == "exp4-gender-race-age-both" else pytest.mark.slow, id=path.stem)
    for path in CONFIGS
]
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


def check_trace(config, sizes):
    step, state, frozen, batch = full_size.training_step(config, sizes)
    after, scalars, images = jax.eval_shape(steps.program(step, parallel.mesh(8)), state, frozen, batch)
    assert images.shape == (config.training.images_per_prompt, *step.pipeline.image_size, 3)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert scalars["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_training_step_traces_at_full_size_on_eight_devices(path):
    check_trace(load(Experiment, path, {}), full_size.SD15)


@pytest.mark.slow
def test_the_training_step_traces_at_the_size_of_stable_diffusion_2_1():
    """Other text encoder, heads, projections, prediction and size; the experiment is the same."""
    path = next(path for path in CONFIGS if path.stem == "exp4-gender-race-age-both")
    check_trace(load(Experiment, path, {}), full_size.SD21)


# Run, at reduced width.


@pytest.mark.slow
def test_a_model_of_stable_diffusion_2s_kind_is_finetuned_by_its_folder_alone(tmp_path):
    """Heads for each block, linear projections, another activation, and velocities: all from its own files."""
    wider = dataclasses.replace(
        small_world.UNET, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=(4,), use_linear_projection=True,
    )  # fmt: skip
    small_world.build(tmp_path / "sd2", wider, hidden_act="gelu")
    scheduler = tmp_path / "sd2" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"v_prediction"'))
    asked = {"adapter.kinds": ("text_encoder", "unet"), "training.num_steps": (2, 2), "training.images_per_prompt": 4}
    finetuning = Finetuning(load(Experiment, None, small_world.fields(tmp_path / "sd2") | asked), parallel.mesh(1))
    assert finetuning.pipeline.schedule.prediction_type == "v_prediction"
    start = finetuning.initial()
    batch, _ = finetuning.batch(0, start.bundle)
    state, scalars, _ = finetuning.compiled()(start, finetuning._frozen, batch)
    assert all(np.isfinite(value) for value in jax.tree.leaves(scalars)) and scalars["gradient_norm"] > 0
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start.bundle, state.bundle)
    assert all(max(jax.tree.leaves(moved[kind])) > 0 for kind in asked["adapter.kinds"])


class OverPhotos(NamedTuple):
    finetuning: Finetuning
    program: Callable[..., Any]  # of its step, on what is drawn over photographs


@pytest.fixture(scope="module")
def case(request, models):
    """An experiment's finetuning with the small models, whose programs are compiled once for all tests of it.

    They go when its tests are done: each maps some thousand pieces of memory, and a system gives a process 65,530.
    """
    finetuning = finetuning_of(models, request.param.stem, **{"training.images_per_prompt": 2})
    yield OverPhotos(finetuning, steps.program(finetuning._step, finetuning.mesh))
    jax.clear_caches()


def take(case, state, number, photos):
    batch, _ = case.finetuning.batch(number, state.bundle)
    with pytest.MonkeyPatch.context() as monkeypatch:  # no longer: the dry runs below draw what they really would
        draw_over_photos(monkeypatch)
        state, scalars, _ = case.program(state, over(case.finetuning._frozen, photos), batch)
    return state, {name: float(value) for name, value in scalars.items()}


@pytest.mark.parametrize("case", EXPERIMENTS, indirect=True)
def test_two_steps_at_reduced_width_with_every_loss_on(case):
    kinds = case.finetuning.config.adapter.kinds
    state = start = case.finetuning.initial()
    told = []
    for number in range(2):
        state, scalars = take(case, state, number, photograph()[None])
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


@pytest.mark.parametrize("case", EXPERIMENTS, indirect=True)
def test_without_a_face_nothing_is_asked_of_it(case):
    """Grey pictures: no face, no target, no face loss; only what they mean is kept."""
    state, _ = take(case, case.finetuning.initial(), 0, photograph()[None])  # now its images are not the frozen ones
    state, scalars = take(case, state, 1, np.zeros_like(photograph()[None]))
    assert scalars["faces"] == scalars["targeted"] == scalars["loss/fairness"] == scalars["loss/face"] == 0
    assert scalars["prompts_without_target"] == 1 and np.isfinite(scalars["loss"])
    assert scalars["loss/image"] > 0
    assert int(state.skipped) == 0 and scalars["gradient_norm"] > 0


@pytest.mark.parametrize("untargeted", [False, True], ids=["as in experiment 1", "as in experiment 4"])
def test_a_loss_leaves_images_alone_that_it_says_nothing_of(untargeted, models):
    """In one batch, by the pixels: fairness and face without a face, fairness without a target, and in experiments of
    one attribute the face, too; all else has a pull."""
    changes = {"loss.threshold": 0.2} | ({"loss.face_untargeted": True} if untargeted else {})
    finetuning = finetuning_of(models, "exp1-gender-unet", **changes)
    mesh, names = finetuning.mesh, ("fairness", "face")
    original = 0.8 * np.stack([*PHOTOS[:2], PHOTOS[3], PHOTOS[3]])  # of the third, the frozen model drew no face

    def pulls(images, original, frozen, batch):
        def losses(images):
            each, (verdict, _), (_, labels, _) = finetuning._step.losses_of(images, original, frozen, batch)
            return {name: each[name] for name in names}, (verdict.has_face, *labels)

        _, pull_back, told = jax.vjp(losses, images, has_aux=True)
        one = {name: jnp.eye(2)[:, number, None] * jnp.ones((1, len(images))) for number, name in enumerate(names)}
        return jax.vmap(pull_back)(one)[0], told

    batch, _ = finetuning.batch(0, finetuning.initial().bundle)
    program = parallel.spread(pulls, mesh, (parallel.REPLICATED,) * 4, parallel.REPLICATED)
    gradients, (has_face, labels) = program(*parallel.replicate((PHOTOS, original, finetuning._frozen, batch), mesh))
    assert has_face.tolist() == [True, True, True, False]
    assert sorted((labels >= 0)[:3].tolist()) == [False, True, True]  # the one in the middle may become either
    assert np.isfinite(gradients).all()
    pulled = np.any(np.asarray(gradients) != 0, axis=(2, 3, 4))  # [losses, images]
    np.testing.assert_array_equal(pulled, [labels >= 0, has_face & (untargeted | (labels >= 0))])


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
