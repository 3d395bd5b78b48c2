"""The embedded pipeline: what diffusers makes of the same folder, and images that depend on nothing but their key."""

import numpy as np
import pytest

from fairjax.convert.bundles import load_adapter, save_adapter
from fairjax.pipeline import Pipeline, find, image_keys, solver_table

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
