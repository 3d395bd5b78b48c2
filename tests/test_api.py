"""The interface for scripts: README's own lines, and what it measures against what is true."""

import ast
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from small_world import SIDE, fields

import fairjax
from fairjax import pipeline as pipelines
from fairjax.adapters import bundle as bundles
from fairjax.faces import reading
from fairjax.fairness.intervals import corrected_interval
from fairjax.hub import find
from fairjax.pipeline import Pipeline
from fairjax.portraits import captions, world
from fairjax.portraits.occupations import OCCUPATIONS
from fairjax.portraits.pretrain import SEED, UNBIASED

README = Path(__file__).parents[1] / "README.md"
SMALLER = {"num_images=8": "num_images=2", "num_images=64": "num_images=4", '"steps": 20': '"steps": 2'}


def lines_of_readme():
    (lines,) = (
        part for part in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "finetune" in part
    )
    for large, small in SMALLER.items():
        assert large in lines
        lines = lines.replace(large, small)
    return lines


def test_the_lines_of_the_readme_run(small_world, tmp_path, monkeypatch, capsys):
    """On a small world in place of the embedded one, with fewer images and steps."""
    monkeypatch.chdir(tmp_path)
    pipeline = fairjax.Pipeline.from_pretrained(small_world)
    bundle = bundles.init(("unet",), pipeline.params, 2, 1, jax.random.key(0))
    fairjax.save_adapter(bundle, pipeline, Path("runs/portraits-gender/adapter"))
    for module in (pipelines, reading):
        monkeypatch.setattr(module, "find", lambda *_, **__: small_world)
    made = {}
    exec(lines_of_readme(), made)  # noqa: S102 (our own)
    told = capsys.readouterr().out.splitlines()
    assert made["images"].shape == made["after"].shape == (2, 2, SIDE, SIDE, 3) and made["images"].dtype == np.uint8
    assert (made["images"] != made["after"]).any()
    assert made["seen"].probs["gender"].shape == (2, 2, 2) and made["seen"].has_face.shape == (2, 2)
    assert made["tuned"].steps == 2 and made["tuned"].bundle.keys() == made["adapter"].keys() == {"unet"}
    assert [line.split()[0] for line in told[1:3]] == ["1", "2"]  # the callback, between the two measurements
    assert len(told) == 4
    assert all(ast.literal_eval(line).keys() == world.ATTRIBUTES.keys() for line in (told[0], told[3]))


def test_bias_is_what_counting_what_is_classified_gives(small_world):
    pipeline, prompts = fairjax.Pipeline.from_pretrained(small_world), ["a chef", "a pilot"]
    judges = fairjax.Experiment(
        judges={k.removeprefix("judges."): v for k, v in fields(small_world).items() if "." in k}
    ).judges
    how = {"seed": 3, "num_steps": 2, "guidance_scale": 1.0}
    bias = fairjax.measure_bias(pipeline, prompts, 8, judges=judges, **how)
    seen = fairjax.classify(pipeline.generate(prompts, 8, **how), judges)
    assert seen.has_face.any(1).all()
    for name, probs in seen.probs.items():
        expected = []
        for labels, there in zip(probs.argmax(-1), seen.has_face, strict=True):
            shares = [np.mean(labels[there] == number) for number in range(probs.shape[-1])]
            expected.append(np.mean([abs(a - b) for i, a in enumerate(shares) for b in shares[:i]]))
        assert bias[name] == pytest.approx(np.mean(expected), abs=1e-6), name


def test_what_ships_is_small_and_codes_portraits_well():
    """docs/portraits.md has the figures, of more of them; this is what would show that something broke."""
    folder = find("portraits")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20e6
    drawn = world.render_many(range(UNBIASED, UNBIASED + 64), SEED, biased=False)["image"].astype(np.float32)
    pipeline = Pipeline.from_pretrained()
    vae, params = pipeline.vae, pipeline.params["vae"]
    mean = vae.apply(params, drawn / 127.5 - 1, method="encode").mean
    coded = np.clip(vae.apply(params, mean, method="decode"), -1, 1)
    assert 10 * np.log10(4 / np.mean((coded - (drawn / 127.5 - 1)) ** 2)) >= 27  # dB


def test_the_shipped_model_draws_what_it_is_asked_for():
    names = [occupation.name for occupation in OCCUPATIONS]
    prompts = [captions.fill("a photo of the face of a {occupation}, a person", name) for name in names]
    images = Pipeline.from_pretrained().generate(prompts, num_steps=12)
    seen = fairjax.classify(images)
    assert seen.has_face.mean() >= 0.95 and (seen.recognised[:, 0] == np.arange(len(names))).mean() >= 0.9


@pytest.mark.parametrize("women", [20, 100, 180])
def test_the_errors_that_ship_with_the_classifier_give_the_true_shares_of_a_mixture(women):
    """Of 200 portraits, so many of them of women, by what the classifier makes of them and what it is known to make."""
    drawn = world.render_many(range(UNBIASED + 2000, UNBIASED + 2450), SEED, biased=False)
    chosen = [np.flatnonzero(drawn["gender"] == label)[:n] for label, n in ((0, women), (1, 200 - women))]
    seen = fairjax.classify(drawn["image"][np.concatenate(chosen)][None])
    counts = np.bincount(seen.probs["gender"][0].argmax(-1), minlength=2)
    errors = reading.errors(fairjax.Experiment().judges)
    assert errors.keys() == world.ATTRIBUTES.keys() and errors["skin_tone"].shape == (4, 4)
    _, low, high = corrected_interval(counts, errors["gender"], np.random.default_rng(0))
    truth = np.array([women, 200 - women]) / 200
    assert (low <= truth).all() and (truth <= high).all() and (high - low < 0.16).all()


def test_errors_of_other_classes_are_refused_and_of_averaged_classifiers_left_out(tmp_path):
    folder = shutil.copytree(find("portraits") / "classifier_eval", tmp_path / "classifier")
    both = fairjax.Experiment(judges={"evaluation": (str(folder), "portraits/classifier_eval")}).judges
    assert reading.errors(both) == {}
    (folder / "held_out.json").write_text(
        '{"gender": {"classes": ["male", "female"], "rows_are_labels": [[1, 0], [0, 1]]}}'
    )
    with pytest.raises(ValueError, match=r"held_out\.json: gender is not of the classifier's classes"):
        reading.errors(both)
    (folder / "held_out.json").unlink()
    assert reading.errors(fairjax.Experiment(judges={"evaluation": (str(folder),)}).judges) == {}


def test_portraits_are_classified_as_they_were_drawn():
    drawn = world.render_many(range(UNBIASED, UNBIASED + 64), SEED, biased=False)
    seen = fairjax.classify(drawn["image"][None])
    person = drawn["face"] > 0
    np.testing.assert_array_equal(seen.has_face[0], person)
    for name in world.ATTRIBUTES:
        assert np.mean(seen.probs[name][0].argmax(-1)[person] == drawn[name][person]) >= 0.95, name
