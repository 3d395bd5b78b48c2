"""What diffusers makes of whole folders, we make of them."""

import json

import diffusers
import jax
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from fairjax.adapters.bundle import init
from fairjax.convert import adapters, bundles
from fairjax.diffusion.solvers import solver_steps
from fairjax.pipeline import Pipeline


def test_soft_tokens_beside_an_adapter_of_peft_do_not_hide_it(small_world, tmp_path):
    pipeline = Pipeline.from_pretrained(small_world)
    bundles.save_adapter(init(("unet", "soft_prompt"), pipeline.params, 2, 3, jax.random.key(0)), pipeline, tmp_path)
    tensors = load_file(tmp_path / adapters.LORA_FILE)
    named = {"base_model.model." + name.removeprefix("unet."): tensor for name, tensor in tensors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    (tmp_path / adapters.LORA_FILE).unlink()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2}))
    assert bundles.load_adapter(tmp_path, pipeline).keys() == {"unet", "soft_prompt"}


def edited(source, folder, file, **fields):
    bundles.save_pipeline({}, Pipeline.from_pretrained(source), folder)  # with an index, for diffusers
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_timesteps_are_those_of_a_diffusers_pipeline(small_world, tmp_path):
    fields = {"timestep_spacing": "leading", "steps_offset": 0}
    folder = edited(small_world, tmp_path / "x", "scheduler/scheduler_config.json", **fields)
    scheduler = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).scheduler
    scheduler.set_timesteps(5)
    ours = solver_steps(Pipeline.from_pretrained(folder, weights=False).schedule, "dpm-solver++", 5)
    np.testing.assert_array_equal(ours.timestep, scheduler.timesteps.numpy())


def test_the_size_is_that_of_a_diffusers_pipeline(small_world, tmp_path):
    fields = {"_diffusers_version": "0.6.0", "sample_size": 32}
    folder = edited(small_world, tmp_path / "x", "unet/config.json", **fields)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert theirs.unet.config.sample_size == 64
    assert Pipeline.from_pretrained(folder, weights=False).latent_shape[:2] == (64, 64)


def test_a_word_of_several_vectors_is_all_of_them(tmp_path):
    pipeline = Pipeline.from_pretrained("portraits")
    fresh = init(("soft_prompt",), pipeline.params, 2, 3, jax.random.key(0))
    bundles.save_pipeline(fresh, pipeline, tmp_path / "whole")
    whole = Pipeline.from_pretrained(tmp_path / "whole", weights=False)
    np.testing.assert_array_equal(whole.token_ids(["<fair> a pilot"])[0], pipeline.token_ids(["a pilot"], fresh)[0])


def test_a_merged_pipeline_of_a_model_in_half_precision_is_read_in_one_type(small_world, tmp_path):
    source, whole = tmp_path / "half", tmp_path / "whole"
    bundles.save_pipeline({}, Pipeline.from_pretrained(small_world), tmp_path / "single")
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "single").to(torch.float16).save_pretrained(source)
    bundles.save_pipeline({}, Pipeline.from_pretrained(source), whole)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(whole)
    assert {pipe.text_encoder.dtype, pipe.unet.dtype, pipe.vae.dtype} == {torch.float32}
