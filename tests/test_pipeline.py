"""The embedded pipeline: what diffusers makes of the same folder, and images that depend on nothing but their key."""

import dataclasses
import gc
import itertools
import json
import shutil
import weakref
from functools import partial

import diffusers
import jax
import numpy as np
import pytest
import torch
from small_world import WIDTH, fields

import fairjax
from fairjax import memory, parallel
from fairjax.adapters import bundle as bundles
from fairjax.config import Experiment
from fairjax.convert.bundles import load_adapter, save_adapter
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.hub import find
from fairjax.pipeline import Pipeline, generation, image_keys, solver_table
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPTS = ["a portrait of a pilot", "a photo of the face of a chef, a person"]
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained("portraits")


@pytest.fixture(scope="module")
def small(small_world):
    """Random networks: for what does not depend on what the images show."""
    return Pipeline.from_pretrained(small_world)


@pytest.fixture(scope="module")
def sample(pipeline):
    """(latents, solver table, number of steps) -> guided images of the prompts; one compiled program serves all."""
    ids, empty, own = pipeline.token_ids(PROMPTS), pipeline.token_ids([""]), np.arange(len(PROMPTS))

    @jax.jit
    def run(params, noise, table, num_steps):
        return pipeline.sample(params, {}, ids, empty, own, noise, table, num_steps, GUIDANCE)

    return partial(run, pipeline.params)


@pytest.mark.parametrize(("solver", "num_steps"), [("dpm-solver++", 25), ("ddim", 10)])
def test_the_folder_is_a_diffusers_pipeline_and_gives_the_same_images(pipeline, sample, solver, num_steps):
    """A whole guided chain and decoding, from the same noise: at most 1e-3 on pixels in [-1, 1]."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(find("portraits"), dtype=torch.float32)
    if solver == "ddim":
        theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    theirs.set_progress_bar_config(disable=True)
    noise = pipeline.noise(image_keys(jax.random.key(3), np.array([[0, 0], [1, 0]])))
    asked = {"num_inference_steps": num_steps, "guidance_scale": GUIDANCE, "output_type": "np"}
    expected = theirs(PROMPTS, latents=torch.tensor(np.asarray(noise).transpose(0, 3, 1, 2)), **asked).images * 2 - 1
    ours = sample(noise, solver_table(pipeline.schedule, solver, 25), num_steps)
    assert np.abs(np.asarray(ours) - expected).max() <= 1e-3


def test_the_tokenizer_is_clips(pipeline):
    ids = pipeline.token_ids(["a photo of the face of a chef, a person"])[0]
    tokenizer = pipeline.tokenizer
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id in ids
    assert len(ids) == tokenizer.model_max_length == 32
    assert {path.name for path in (find("portraits") / "tokenizer").iterdir()} >= {"vocab.json", "merges.txt"}


def test_an_image_does_not_depend_on_the_others_or_on_the_batch(small):
    kinds = {"num_steps": 3, "guidance_scale": GUIDANCE, "seed": 5}
    together = small.generate(PROMPTS, 5, batch_size=8, **kinds)
    alone = small.generate(PROMPTS[1:], 2, batch_size=2, first=1, **kinds)
    assert together.shape == (2, 5, 16, 16, 3) and together.dtype == np.uint8
    assert np.abs(together[1:, :2].astype(int) - alone.astype(int)).max() <= 1  # rounding to bytes
    assert np.abs(together[0, 0].astype(int) - together[0, 1].astype(int)).max() > 20


def test_guidance_is_what_the_model_is_made_for_where_it_is_not_said(small):
    made_for, how = dataclasses.replace(small, guidance_scale=GUIDANCE), {"num_steps": 3, "batch_size": 8}
    plain, said = (small.generate(PROMPTS[:1], guidance_scale=scale, **how) for scale in (1.0, GUIDANCE))
    np.testing.assert_array_equal(made_for.generate(PROMPTS[:1], **how), said)
    assert (plain != said).any()


def test_as_many_images_are_made_at_once_as_the_memory_takes(small, monkeypatch):
    """And shared out evenly over batches, so that hardly any is filled up."""
    mesh = parallel.mesh(1)
    monkeypatch.setattr(parallel, "mesh", lambda: mesh)
    how = {"num_steps": 2, "guidance_scale": GUIDANCE}
    assert small.images_at_once(21, **how) == 21 and small.images_at_once(130, **how) == 44  # a CPU takes what it wants
    takes = {each: memory.needed(small.lowered(mesh, each, 2, GUIDANCE).compile()) for each in (1, 6)}
    fits = int(1.01 * takes[6] / memory.MARGIN)
    monkeypatch.setattr(parallel, "memory_left", lambda mesh: fits)
    fitted = {count: small.images_at_once(count, **how) for count in (5, 6, 7, 22, 23, 61)}
    assert fitted == {5: 5, 6: 6, 7: 4, 22: 6, 23: 6, 61: 6}
    batches = list(small.draw(PROMPTS[:1], np.array([[0, number] for number in range(23)]), **how))
    assert [len(batch) for batch in batches] == [6, 6, 6, 5]
    monkeypatch.setattr(parallel, "memory_left", lambda mesh: takes[1] // 2)
    with pytest.raises(ValueError, match=r"^making images takes .* with one image at a time; it has .* would fit$"):
        small.images_at_once(9, **how)


def test_a_model_is_let_go_of_with_its_last_name(small_world):
    """Its weights are on a device; a program of it that stayed would keep them there."""
    pipeline = Pipeline.from_pretrained(small_world)
    pipeline.generate(PROMPTS[:1], num_steps=2, guidance_scale=GUIDANCE)
    kept = weakref.ref(pipeline)
    del pipeline
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(("prompts", "num_images"), [([], 1), (PROMPTS, 0)])
def test_no_image_is_one_line(small, prompts, num_images):
    with pytest.raises(ValueError, match="^there is no image to make: prompts and num_images must be at least"):
        small.generate(prompts, num_images)


def test_each_prompt_is_encoded_once_however_many_images_it_has(small, monkeypatch):
    program, rows = fairjax.pipeline.encoding(small, parallel.mesh()), []

    def counting(params, ids):
        rows.append(len(ids))
        return program(params, ids)

    monkeypatch.setattr(fairjax.pipeline, "encoding", lambda pipeline, mesh: counting)
    small.generate(PROMPTS, 12, batch_size=8, num_steps=2, guidance_scale=GUIDANCE)  # three batches
    assert rows == [parallel.mesh().size]  # two prompts and the empty one, filled up to one for each device


def test_soft_tokens_alone_cost_no_gradient_of_the_unconditional_half(small, monkeypatch):
    """It is the same gradient by far fewer operations: pulled back through the conditional prediction and no other."""
    bundle = bundles.init(("soft_prompt",), small.params, 0, 3, jax.random.key(0))
    ids, empty, own = small.token_ids(PROMPTS, bundle), small.token_ids([""]), np.arange(len(PROMPTS))
    table, noise = solver_table(small.schedule, "ddim", 2), small.noise(jax.random.split(jax.random.key(1), 2))

    def of(function, *arguments):  # its gradient by the first, and how many FLOPs that is
        program = jax.jit(jax.grad(lambda *arguments: function(*arguments).sum())).lower(*arguments).compile()
        return program(*arguments), program.cost_analysis()["flops"]

    def sample():  # anew, not to be traced already
        return lambda bundle, params: small.sample(params, bundle, ids, empty, own, noise, table, 2, GUIDANCE)

    (found, few), guided = of(sample(), bundle, small.params), fairjax.pipeline.guided
    monkeypatch.setattr(fairjax.pipeline, "guided", lambda *how, apart: guided(*how))
    wished, many = of(sample(), bundle, small.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, wished)
    predict = lambda words, params: small.unet.apply(params["unet"], noise, np.ones(2), words)  # noqa: E731
    words = np.ones((2, ids.shape[1], WIDTH), np.float32)
    _, one = of(predict, words, small.params)
    once, twice = (jax.jit(predict).lower(each, small.params).compile().cost_analysis()["flops"]
                   for each in (words, np.concatenate([words, words])))  # fmt: skip
    common = 2 * once - twice  # of two prompts of an image: two calls compute it twice, forward and for the gradient
    assert many - few > 0.98 * (one - 2 * common)


def test_no_array_of_the_decoder_has_more_numbers_than_a_gpu_counts(small, monkeypatch):
    ids, empty, own = small.token_ids(PROMPTS[:1]), small.token_ids([""]), np.zeros(8, int)
    noise, table = small.noise(jax.random.split(jax.random.key(0), 8)), solver_table(small.schedule, "ddim", 1)
    seen, decode = [], Pipeline.decode

    def watched(pipeline, params, latents):
        seen.append(len(latents))
        return decode(pipeline, params, latents)

    def images():
        return jax.jit(lambda params: small.sample(params, {}, ids, empty, own, noise, table, 1, 1.0))(small.params)

    monkeypatch.setattr(Pipeline, "decode", watched)
    wished = images()
    widest = small.vae.abstract["decoder"]["up_blocks"]
    widest = widest[len(widest) - 1]["resnets"][0]["norm1"]["scale"].size
    monkeypatch.setattr(fairjax.pipeline, "_COUNTED", 5 * widest * small.image_size[0] * small.image_size[1])
    np.testing.assert_allclose(images(), wished, atol=1e-5)
    assert seen == [8, 4]  # evenly, not five and three


def test_a_table_first_asked_for_while_something_is_traced_is_of_use_afterwards(small):
    inside = jax.jit(lambda: solver_table(small.schedule, "ddim", 7).steps.timestep)()
    np.testing.assert_array_equal(solver_table(small.schedule, "ddim", 7).steps.timestep, inside)


def test_the_solver_is_a_choice_and_any_number_of_steps_runs_in_one_compiled_program(small):
    made = {
        (solver, num_steps): small.generate(PROMPTS, 4, num_steps=num_steps, solver=solver, guidance_scale=GUIDANCE)
        for solver, num_steps in (("dpm-solver++", 2), ("dpm-solver++", 4), ("ddim", 4))
    }
    assert generation(small, parallel.mesh(), GUIDANCE)._cache_size() == 1
    for one, other in itertools.combinations(made.values(), 2):
        assert np.abs(one.astype(int) - other).max() > 5


def test_a_model_of_few_timesteps_takes_as_many_steps_as_it_has_apart(small):
    few = dataclasses.replace(small, schedule=NoiseSchedule.from_dict(SCHEDULE | {"num_train_timesteps": 40}))
    assert few.generate(PROMPTS[:1], num_steps=8, guidance_scale=GUIDANCE).shape[:2] == (1, 1)
    with pytest.raises(ValueError, match="^num_steps = 40: 40 solver steps cannot be told apart"):
        few.generate(PROMPTS[:1], num_steps=40)


def test_an_adapter_comes_back_as_it_was_saved(pipeline, tmp_path):
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


def test_latents_need_not_be_square_but_the_judges_must_know_the_size(small_world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_world, folder)
    change(folder / "unet" / "config.json", sample_size=[4, 8])
    pipeline = Pipeline.from_pretrained(folder)
    assert (pipeline.latent_shape, pipeline.image_size) == ((4, 8, 4), (8, 16))
    images = pipeline.generate(["a chef"], num_steps=1, guidance_scale=1.0)
    assert images.shape == (1, 1, 8, 16, 3)
    config = load(Experiment, None, fields(folder))
    message = "whole images of 16 x 16 pixels, and these have 8 x 16"
    with pytest.raises(ValueError, match=message):
        Finetuning(config, parallel.mesh(1))
    with pytest.raises(ValueError, match=message):
        fairjax.classify(images, config.judges)


def test_a_tokenizer_that_is_missing_or_damaged_is_one_line(small_world, tmp_path):
    folder = tmp_path / "world"
    shutil.copytree(small_world, folder)
    for path in (folder / "tokenizer").iterdir():
        path.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer is no CLIP tokenizer: ") as error:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"tokenizer: no vocab\.json or tokenizer\.json"):
        Pipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "field", "value", "name"),
    [
        ("model_index.json", "_class_name", "StableDiffusionXLPipeline", " is Stable Diffusion XL"),
        ("model_index.json", "_class_name", "StableDiffusion3Pipeline", " is Stable Diffusion 3"),
        ("model_index.json", "_class_name", "FluxPipeline", " is FLUX"),
        ("model_index.json", "_class_name", "StableAudioPipeline", ""),
        ("unet/config.json", "addition_embed_type", "text_time", " is Stable Diffusion XL"),
        ("unet/config.json", "_class_name", "SD3Transformer2DModel", " is Stable Diffusion 3"),
        ("transformer/config.json", "_class_name", "FluxTransformer2DModel", " is FLUX"),
    ],
)
def test_other_kinds_of_model_are_refused_by_names_that_people_know(file, field, value, name, small_world, tmp_path):
    """With an index and without, even where the rest would be a model of ours."""
    shutil.copytree(small_world, tmp_path / "world")
    path = tmp_path / "world" / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known | {field: value}))
    with pytest.raises(ValueError) as refused:
        Pipeline.from_pretrained(tmp_path / "world")
    supported = "Stable Diffusion 1.x and 2.x (StableDiffusionPipeline) are supported"
    assert str(refused.value) == f"{path}: {field} = {value!r}{name}: {supported}"


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_is_told_as_such(ending, tmp_path, monkeypatch):
    """By a path of one folder too, which might be an id of the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    name = f"models/sd.{ending}"
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"^model = '{name}' is a single file; convert it to a diffusers folder: .*$"):
        Pipeline.from_pretrained(name)
