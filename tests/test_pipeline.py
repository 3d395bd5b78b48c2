"""The embedded pipeline: what diffusers makes of the same folder, and images that depend on nothing but their key."""

import json
import shutil

import numpy as np
import pytest

import fairjax
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.convert.bundles import load_adapter, save_adapter
from fairjax.pipeline import Pipeline, _generation, find, image_keys, solver_table
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning

PROMPTS = ["a portrait of a pilot", "a photo of the face of a chef, a person"]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained("portraits")


def test_the_folder_is_a_diffusers_pipeline_and_gives_the_same_images(pipeline):
    """A whole guided 25-step chain and decoding, from the same noise: at most 1e-3 on pixels in [-1, 1]."""
    import jax
    import torch
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(find("portraits"), torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    noise = pipeline.noise(image_keys(jax.random.key(3), np.array([[0, 0], [1, 0]])))
    latents = torch.tensor(np.asarray(noise).transpose(0, 3, 1, 2))
    expected = (
        theirs(PROMPTS, latents=latents, num_inference_steps=25, guidance_scale=3.0, output_type="np").images * 2 - 1
    )
    ids, empty = pipeline.token_ids(PROMPTS), pipeline.token_ids([""])
    table, own = solver_table(pipeline.schedule, 25), np.arange(len(PROMPTS))
    ours = jax.jit(lambda params: pipeline.sample(params, {}, ids, empty, own, noise, table, 25, 3.0))(pipeline.params)
    assert np.abs(np.asarray(ours) - expected).max() <= 1e-3


def test_the_tokenizer_is_clips(pipeline):
    ids = pipeline.token_ids(["a photo of the face of a chef, a person"])[0]
    tokenizer = pipeline.tokenizer
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id in ids
    assert len(ids) == tokenizer.model_max_length == 32
    assert {path.name for path in (find("portraits") / "tokenizer").iterdir()} >= {"vocab.json", "merges.txt"}


def test_an_image_does_not_depend_on_the_others_or_on_the_batch(pipeline):
    kinds = {"num_steps": 3, "guidance_scale": 3.0, "seed": 5}
    together = pipeline.generate(PROMPTS, 5, batch_size=8, **kinds)
    alone = pipeline.generate(PROMPTS[1:], 2, batch_size=2, first=1, **kinds)
    assert together.shape == (2, 5, 64, 64, 3) and together.dtype == np.uint8
    assert np.abs(together[1:, :2].astype(int) - alone.astype(int)).max() <= 1  # rounding to bytes
    assert np.abs(together[0, 0].astype(int) - together[0, 1].astype(int)).max() > 20


def test_the_solver_is_a_choice_and_ddim_is_diffusers_ddim(pipeline):
    import jax
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(find("portraits"), torch_dtype=torch.float32)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    theirs.set_progress_bar_config(disable=True)
    key = image_keys(jax.random.key(5), np.array([[0, 0]]))
    latents = torch.tensor(np.asarray(pipeline.noise(key)).transpose(0, 3, 1, 2))
    expected = theirs(PROMPTS[:1], latents=latents, num_inference_steps=10, guidance_scale=3.0, output_type="np").images
    ours = pipeline.generate(PROMPTS[:1], 1, seed=5, num_steps=10, guidance_scale=3.0, solver="ddim")[0, 0]
    assert np.abs(ours / 255 - expected[0]).max() <= 1 / 255
    other = pipeline.generate(PROMPTS[:1], 1, seed=5, num_steps=10, guidance_scale=3.0)[0, 0]
    assert np.abs(ours.astype(int) - other).max() > 5


def test_an_adapter_comes_back_as_it_was_saved(pipeline, tmp_path):
    import jax

    from fairjax.adapters import bundle as bundles

    bundle = bundles.init(("text_encoder", "unet", "soft_prompt"), pipeline.params, 4, 3, jax.random.key(0))
    bundle = jax.tree.map(lambda leaf: leaf + 0.01, bundle)
    save_adapter(bundle, pipeline, tmp_path / "run" / "adapter")
    again = load_adapter(tmp_path / "run", pipeline)
    assert jax.tree.structure(again) == jax.tree.structure(jax.device_get(bundle))
    for ours, theirs in zip(jax.tree.leaves(bundle), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_that_is_not_there_is_one_clear_line():
    with pytest.raises(FileNotFoundError, match="model = 'no/such/folder': no such folder"):
        Pipeline.from_pretrained("no/such/folder")


@pytest.fixture
def folder(tmp_path):
    """The embedded pipeline, to be changed."""
    shutil.copytree(find("portraits"), tmp_path / "model")
    return tmp_path / "model"


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("component", "fields", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "in_channels = 9 and out_channels = 4 of the unet must be the"),
        ("vae/config.json", {"latent_channels": 3}, "latent_channels = 3 of the vae"),
        ("unet/config.json", {"sample_size": None}, "sample_size = None of the unet must be"),
        ("text_encoder/config.json", {"max_position_embeddings": 16}, "model_max_length = 32 is more than"),
    ],
)
def test_components_that_do_not_fit_each_other_are_refused_by_name(folder, component, fields, message):
    change(folder / component, **fields)
    with pytest.raises(ValueError, match=message) as error:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_latents_need_not_be_square_but_the_judges_must_know_the_size(folder):
    change(folder / "unet" / "config.json", sample_size=[8, 16])
    pipeline = Pipeline.from_pretrained(folder)
    assert (pipeline.latent_shape, pipeline.image_size) == ((8, 16, 4), (32, 64))
    images = pipeline.generate(["a chef"], num_steps=1, guidance_scale=1.0)
    assert images.shape == (1, 1, 32, 64, 3)
    message = "whole images of 64 x 64 pixels, and these have 32 x 64"
    with pytest.raises(ValueError, match=message):
        Finetuning(load(Experiment, None, {"model": str(folder)}), parallel.mesh(1))
    with pytest.raises(ValueError, match=message):
        fairjax.classify(images)


def test_any_number_of_steps_runs_in_one_compiled_program():
    pipeline = Pipeline.from_pretrained()
    for num_steps in (2, 3):
        pipeline.generate(["a chef"], num_steps=num_steps, guidance_scale=1.0)
    assert _generation(pipeline, parallel.mesh(), 1.0)._cache_size() == 1


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_other_kinds_of_pipeline_are_refused_by_name(kind, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(ValueError, match=f"_class_name = '{kind}': Stable Diffusion 1.x and 2.x .* are supported"):
        Pipeline.from_pretrained(tmp_path)
