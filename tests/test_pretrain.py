"""The pretraining: batches that do not depend on the run, stages that resume, a tokenizer of CLIP's kind."""

import json
from types import SimpleNamespace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.faces import learning
from fairjax.pipeline import Pipeline
from fairjax.portraits import export, pretrain, recipe, stages, tokenizer
from fairjax.portraits.quality import told_from_others
from fairjax.training.fit import Fit, fit, overlay


@pytest.fixture
def quiet():
    return Console(quiet=True)


def line(params, batch, key):
    x, y = batch
    error = jnp.mean((params["w"] * x + params["b"] - y) ** 2)
    return error, ({"loss": error}, {"seen": params["seen"] + 1})


def points(step):
    x = np.random.default_rng(step).normal(size=64).astype(np.float32)
    return x, 3 * x - 1


START = {"w": jnp.zeros(()), "b": jnp.zeros(()), "seen": jnp.zeros(())}


def test_a_stage_learns_and_keeps_its_statistics(tmp_path, quiet):
    plan = Fit(steps=400, batch_size=64, learning_rate=0.05, weight_decay=0.0, ema=0.9, save_every=1_000)
    params = fit("line", tmp_path, plan, START, line, points, jax.random.key(0), quiet)
    assert float(params["w"]) == pytest.approx(3, abs=0.02) and float(params["b"]) == pytest.approx(-1, abs=0.02)
    assert float(params["seen"]) > 300


def test_muon_learns_matrices_and_leaves_the_rest_to_adam(tmp_path, quiet):
    """A linear map and its offset, from examples: the matrix by Muon, the vector by Adam, both to their values."""
    truth = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

    def linear(params, batch, key):
        x, y = batch
        return jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2), ({}, {})

    def examples(step):
        x = np.random.default_rng(step).normal(size=(64, 6)).astype(np.float32)
        return x, x @ truth + 0.5

    plan = Fit(steps=300, batch_size=64, learning_rate=0.05, matrix_learning_rate=0.05, ema=0.9, save_every=1_000)
    start = {"w": jnp.zeros((6, 4)), "b": jnp.zeros(4)}
    params = fit("linear", tmp_path, plan, start, linear, examples, jax.random.key(0), quiet)
    np.testing.assert_allclose(params["w"], truth, atol=0.02)
    np.testing.assert_allclose(params["b"], 0.5, atol=0.02)


def test_a_stopped_stage_goes_on_to_the_same_numbers(tmp_path, quiet):
    plan = Fit(steps=30, batch_size=64, learning_rate=0.05, save_every=10)
    whole = fit("line", tmp_path / "whole", plan, START, line, points, jax.random.key(0), quiet)

    def killed(step):
        if step == 25:
            raise KeyboardInterrupt
        return points(step)

    with pytest.raises(KeyboardInterrupt):
        fit("line", tmp_path / "cut", plan, START, line, killed, jax.random.key(0), quiet)
    resumed = fit("line", tmp_path / "cut", plan, START, line, points, jax.random.key(0), quiet)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.slow
def test_the_whole_pretraining_leaves_a_folder_that_both_worlds_read_and_a_report(tmp_path):
    """Every stage for a few steps on little data; then diffusers, the pipeline, the judges and the report."""
    where = ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "world"), "--report", str(tmp_path / "docs")]
    assert pretrain.main([*where, "--scale", "0.001"]) == 0
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "world")
    pipeline = Pipeline.from_pretrained(tmp_path / "world")
    assert pipeline.generate(["a chef"], num_steps=2, guidance_scale=1.0).shape == (1, 1, 64, 64, 3)
    page = (tmp_path / "docs" / "portraits.md").read_text()
    assert "occupation recognised in samples" in page and (tmp_path / "docs" / "portraits_samples.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "0.001"], "--output is missing"),
        (["--scale", "0.001", "--output", "{}/new"], "--report is missing"),
        (["--output", "{}"], "holds something else than a model"),
        (["--stages", "vae,unett"], "--stages: unknown stage 'unett'"),
        (["--scale", "2"], "--scale = 2: must be greater than 0 and at most 1"),
    ],
)
def test_pretraining_takes_the_place_of_nothing_but_a_model(arguments, message, tmp_path, mistake):
    """What is there stays as it is, and nothing is begun."""
    (tmp_path / "thesis.txt").write_text("years of work")
    assert message in mistake(pretrain.main, "--work", tmp_path / "work", *(a.format(tmp_path) for a in arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_export_that_fails_leaves_the_model_before(tmp_path):
    model = tmp_path / "world"
    model.mkdir()
    (model / "model_index.json").write_text("the model before")
    with pytest.raises(AttributeError):
        export.export(SimpleNamespace(), model)
    assert (model / "model_index.json").read_text() == "the model before"


def test_overlay_replaces_only_what_it_names():
    assert overlay({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 4}}) == {"a": 1, "b": {"c": 2, "d": 4}}


def test_a_batch_is_a_function_of_seed_and_step():
    pick = learning.picks(7, 1_000, 16)
    np.testing.assert_array_equal(pick(3), learning.picks(7, 1_000, 16)(3))
    assert (pick(3) != pick(4)).any()


def test_the_tokenizer_is_in_clips_format(tmp_path):
    captions = ["a photo of the face of a pilot, a person", "the face of an astronaut, blue background"] * 20
    learned = tokenizer.train(captions, tmp_path, 700, 16)
    ids = learned(["A photo of the face of a PILOT, a person"], padding="max_length")["input_ids"][0]
    tokens = learned.convert_ids_to_tokens(ids)
    assert tokens[0] == "<|startoftext|>" and len(ids) == 16
    assert tokens[1:13] == [
        *("a</w>", "photo</w>", "of</w>", "the</w>", "face</w>", "of</w>"),
        *("a</w>", "pilot</w>", ",</w>", "a</w>", "person</w>", "<|endoftext|>"),
    ]
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    assert (tmp_path / "merges.txt").read_text().startswith("#version: 0.2\n")
    assert len(vocab) == len(learned) and vocab["<|endoftext|>"] == learned.eos_token_id == len(vocab) - 1


def test_a_word_never_seen_is_still_tokens(tmp_path):
    learned = tokenizer.train(["a pilot"] * 5, tmp_path, 600, 16)
    assert learned.decode(learned("zebra!")["input_ids"], skip_special_tokens=True).replace(" ", "") == "zebra!"


def test_close_ups_are_cut_from_the_face_and_every_second_picture_stays():
    row, column = jnp.meshgrid(jnp.linspace(0, 1, 64), jnp.linspace(0, 1, 64), indexing="ij")
    images = jnp.broadcast_to(jnp.stack([row, column, row], -1)[None], (6, 64, 64, 3))
    seen = stages.with_close_ups(images, jax.random.key(0))
    np.testing.assert_allclose(seen[1::2], images[1::2], atol=1e-5)  # a picture in its own size is interpolated at 1:1
    for close in seen[0::2]:
        sides = close[-1, 0, 0] - close[0, 0, 0], close[0, -1, 1] - close[0, 0, 1]
        np.testing.assert_allclose(sides[0], sides[1], atol=1e-3)  # square, of a fifth to a third of the height
        assert 0.2 < float(sides[0]) < 0.36
        assert abs(float(close[..., 0].mean()) - 0.51) < 0.05 and abs(float(close[..., 1].mean()) - 0.5) < 0.05
    assert float(jnp.abs(seen[0] - seen[2]).max()) > 0.01  # each in its own way


def test_the_denoiser_counts_errors_by_the_min_snr_weights():
    """Of a network that predicts no noise at all timesteps once: the mean weight, by diffusers' schedule."""

    class Silent:
        def apply(self, params, noisy, timesteps, context):
            return jnp.zeros_like(noisy)

    schedule = NoiseSchedule.from_dict(recipe.SCHEDULER)
    latents = stages.Latents(np.zeros((1_000, 8, 8, 4), np.float32), np.ones((1_000, 8, 8, 4), np.float32))
    plan = Fit(steps=1, batch_size=1_000, learning_rate=0.0)
    captions = np.zeros(1_000, int)
    loss, batch = stages.denoiser(Silent(), latents, np.zeros((1, 3, 5), np.float32), captions, 0, schedule, plan, 0)
    weighted, (shown, _) = loss({}, batch(0), jax.random.key(0))

    alphas_cumprod = diffusers.DDPMScheduler.from_config(recipe.SCHEDULER).alphas_cumprod
    snr = alphas_cumprod / (1 - alphas_cumprod)
    expected = (snr.clamp(max=5.0) / snr).mean()
    # both within the sampling error of the squared noise: 256 draws of each timestep
    assert float(weighted) == pytest.approx(float(expected), rel=0.02) and expected < 0.95
    assert float(shown["error"]) == pytest.approx(1, rel=0.02)


def test_what_features_say_of_others_is_told_and_nothing_else():
    rng = np.random.default_rng(0)
    features, noise = rng.normal(size=(64, 8)), rng.normal(size=64)
    assert told_from_others(features, features @ np.arange(8), ridge=1e-6) == pytest.approx(1, abs=1e-6)
    assert told_from_others(features, noise) < 0.2
