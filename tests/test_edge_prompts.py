"""Prompts of any length and in any script, and one twice: through the tokenizer and the networks to images."""

import json

import numpy as np
import pytest
from small_world import build, fields

import train as train_program
from fairjax import parallel
from fairjax.adapters import soft_prompt
from fairjax.config import Experiment
from fairjax.pipeline import Pipeline
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning

LENGTH = 77
"""Of the prompts of Stable Diffusion, in tokens, those of beginning and end included."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    build(folder, max_position_embeddings=LENGTH)
    said = folder / "tokenizer" / "tokenizer_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"model_max_length": LENGTH}))
    return Pipeline.from_pretrained(folder)


def draw(pipeline, *prompts):
    return pipeline.generate(prompts, 2, num_steps=1, guidance_scale=1.5)


@pytest.mark.parametrize(
    ("prompt", "tokens", "read"),
    [
        ("", 0, ""),
        (" \n\t ", 0, ""),
        ("chef " * 75, 75, "chef " * 75),  # 77 with beginning and end
        ("chef " * 76, 76, "chef " * 75),
        ("chef " * 500, 500, "chef " * 75),
        ("\N{GRINNING FACE}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{COOKING}", None, None),
        ("医者の顔の写真", None, None),
        ("portrait d'une méde\N{COMBINING ACUTE ACCENT}cin", None, "portrait d'une médécin"),
        ("a CHEF", 2, "a  chef"),
    ],
)
def test_a_prompt_of_any_length_and_script_is_read(prompt, tokens, read, pipeline, capsys):
    """What is read of it makes the same images; it is told where that is not all."""
    tokenizer, (ids,) = pipeline.tokenizer, pipeline.token_ids([prompt])
    assert len(ids) == LENGTH and ids[0] == tokenizer.bos_token_id and ids.max() < pipeline.vocabulary
    end = ids.tolist().index(tokenizer.eos_token_id)
    assert tokens is None and 0 < end - 1 < 75 or end - 1 == min(tokens, 75)
    if read is not None:
        np.testing.assert_array_equal(draw(pipeline, prompt), draw(pipeline, read))
    else:
        assert (draw(pipeline, prompt) != draw(pipeline, "")).any()
    told = capsys.readouterr().err
    if tokens and tokens > 75:
        assert told.startswith(f"warning: a prompt has {tokens} tokens, of which 75 are read: 'chef chef")
    assert told.count("\n") == bool(tokens and tokens > 75)  # once


def test_soft_tokens_take_the_place_of_the_last_words(pipeline, capsys):
    words = soft_prompt.token_embedding(pipeline.params["text_encoder"])
    soft = {"soft_prompt": soft_prompt.from_words(words, np.arange(5))}
    pipeline.token_ids(["pilot " * 70], soft)
    assert not capsys.readouterr().err
    pipeline.token_ids(["pilot " * 71], soft)
    assert "a prompt has 71 tokens, of which 70 are read: 'pilot pilot" in capsys.readouterr().err


def test_a_prompt_that_comes_twice_is_drawn_twice(pipeline):
    """Noise is of a prompt's place."""
    first, second = draw(pipeline, "a chef", "a chef")
    assert (first != second).any()
    np.testing.assert_array_equal(first, draw(pipeline, "a chef")[0])


def test_a_prompt_that_comes_twice_in_a_step_is_two_prompts(small_world):
    asked = {
        "prompts.subjects": ("chef",), "prompts.templates": ("a photo of a {occupation}",),
        "training.prompts_per_step": 2, "training.images_per_prompt": 4, "training.num_steps": (2, 2),
    }  # fmt: skip
    case = Finetuning(load(Experiment, None, fields(small_world) | asked), parallel.mesh(1))
    start = case.initial()
    batch, prompts = case.batch(0, start.bundle)
    assert [prompt.text for prompt in prompts] == ["a photo of a chef"] * 2
    state, scalars, images = case.compiled()(start, case._frozen, batch)
    assert int(state.skipped) == 0 and np.isfinite(scalars["loss"])
    assert len(np.unique(np.asarray(images), axis=0)) == 8


def test_one_image_of_a_prompt_is_refused(mistake, tmp_path):
    told = mistake(train_program.main, "--training.images_per_prompt", 1, "--output", tmp_path / "run")
    assert "training.images_per_prompt = 1: must be" in told and not (tmp_path / "run").exists()
