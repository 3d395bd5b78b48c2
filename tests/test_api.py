"""The interface for scripts: README's own lines, and what it measures against what is true."""

import ast
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from small_world import SIDE, fields

import fairjax
from fairjax import parallel
from fairjax import pipeline as pipelines
from fairjax.adapters import bundle as bundles
from fairjax.api import Finetuned
from fairjax.evaluation import measuring
from fairjax.evaluation.scores import Scoring, without_errors
from fairjax.faces import reading
from fairjax.faces.classifier import Classifier
from fairjax.fairness.attributes import Attribute
from fairjax.fairness.intervals import corrected_interval
from fairjax.hub import find
from fairjax.models.mobilenet import MobileNetV3Config
from fairjax.pipeline import Pipeline
from fairjax.portraits import captions, world
from fairjax.portraits.occupations import OCCUPATIONS
from fairjax.portraits.pretrain import SEED, UNBIASED
from fairjax.schema import load

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
    for module in (pipelines, reading):
        monkeypatch.setattr(module, "find", lambda *_, **__: small_world)
    prepared = []
    monkeypatch.setattr(parallel, "prepare", lambda: prepared.append(True))  # JAX has started here
    made = {}
    exec(lines_of_readme(), made)  # noqa: S102 (our own)
    told = capsys.readouterr().out.splitlines()
    assert prepared
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


IMAGES = np.zeros((1, 2, SIDE, SIDE, 3), np.uint8)
MISTAKES = {
    "an adapter's folder": ({"bundle": "runs/one"}, "bundle is a str: it must be adapters"),
    "all that a finetuning gives": (
        {"bundle": Finetuned({}, 3, 0)},
        r"bundle is a Finetuned: .*fairjax.finetune\(...\).bundle",
    ),
    "an unknown adapter": ({"bundle": {"Unet": {}}}, "bundle is a dict of Unet: it must be adapters"),
    "one prompt": ({"prompts": "a pilot"}, r"prompts is one text: give a list of them, \['a pilot'\]"),
    "a prompt that is none": ({"prompts": ["a pilot", 1]}, r"prompts\[1\] = 1 must be text"),
    "no prompt": ({"prompts": []}, "there is no image to make"),
    "prompts in no order": ({"prompts": {"a pilot", "a chef"}}, "prompts is a set: give a list of texts"),
    "prompts that can be had once": ({"prompts": iter(["a pilot"])}, "prompts is a list_iterator: give a list"),
    "nothing for prompts": ({"prompts": None}, "prompts is a NoneType: give a list of texts"),
    "no image": ({"num_images": 0}, "there is no image to make"),
    "fewer than none": ({"num_images": -1}, "num_images = -1 must be at least 0"),
    "images in words": ({"num_images": "4"}, "num_images = '4' must be a whole number"),
    "half an image": ({"num_images": 2.0}, "num_images = 2.0 must be a whole number"),
    "a seed of too many bits": ({"seed": 2**32}, "seed = 4294967296 must be from 0 to 4294967295"),
    "a seed below 0": ({"seed": -1}, "seed = -1 must be from 0"),
    "no guidance": ({"guidance_scale": float("nan")}, "guidance_scale = nan must be a number from 0"),
    "guidance below 0": ({"guidance_scale": -1}, "guidance_scale = -1 must be a number from 0"),
    "an empty batch": ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
    "a place below 0": ({"first": -1}, "first = -1 must be at least 0"),
}


@pytest.mark.parametrize(("changed", "told"), MISTAKES.values(), ids=MISTAKES)
def test_what_would_draw_something_else_than_was_meant_is_refused(changed, told, small_world):
    """Each once gave the base model's images, black ones, those of letters, or an error from the inside."""
    with pytest.raises((TypeError, ValueError), match=told):
        fairjax.Pipeline.from_pretrained(small_world).generate(**{"prompts": ["a pilot"]} | changed)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (IMAGES / 255, "images are float64: they must be uint8"), ([IMAGES], "images are list: they must be uint8"),
        (IMAGES[0], "they must be uint8 .prompts, images of each"), (IMAGES[:, :0], r"images are \[1, 0, "),
        (IMAGES.repeat(2, -1)[..., :4], "must be uint8"),
    ],
)  # fmt: skip
def test_images_that_would_be_misread_are_not_classified(images, told):
    with pytest.raises((TypeError, ValueError), match=told):
        fairjax.classify(images)


def test_checkpoints_of_another_finetuning_are_not_gone_on_from(small_world, tmp_path):
    """A notebook's cell, changed and run again: it would give the adapter of the first, without a step."""
    changes = fields(small_world) | {"training.steps": 1, "training.images_per_prompt": 8, "training.num_steps": (1, 1)}
    config = load(fairjax.Experiment, None, changes)
    first = fairjax.finetune(config, checkpoints=tmp_path / "kept")
    assert first.steps == 1 and repr(first) == "Finetuned(unet; 1 steps, 0 skipped)"
    other = load(fairjax.Experiment, None, changes | {"target.distribution": (0.9, 0.1)})
    with pytest.raises(ValueError, match="kept is of another finetuning: target.distribution = .*but the run has None"):
        fairjax.finetune(other, checkpoints=tmp_path / "kept")
    jax.tree.map(
        np.testing.assert_array_equal, fairjax.finetune(config, checkpoints=tmp_path / "kept").bundle, first.bundle
    )


def test_a_notebook_shows_what_there_is(small_world):
    pipeline = fairjax.Pipeline.from_pretrained(small_world)
    assert repr(pipeline) == f"Pipeline({str(small_world)!r}, float32, {SIDE} x {SIDE} pixels)"
    assert {"Pipeline", "classify", "finetune"} <= set(dir(fairjax))
    with pytest.raises(TypeError, match="config is a dict: it must be a fairjax.Experiment"):
        fairjax.finetune({})
    with pytest.raises(ValueError, match="dtype = 'fp16' must be float32 or bfloat16"):
        fairjax.Pipeline.from_pretrained(small_world, dtype="fp16")
    for dtype in (jnp.bfloat16, pipeline.dtype, np.float32):
        assert fairjax.Pipeline.from_pretrained(small_world, dtype=dtype, weights=False).dtype == dtype
    for call in (
        lambda: fairjax.measure_bias("portraits", ["a pilot"]),
        lambda: fairjax.load_adapter(pipeline, "runs/x"),
        lambda: fairjax.save_adapter({}, "runs/x", pipeline),
    ):
        with pytest.raises(TypeError, match="pipeline is a str: it must be a fairjax.Pipeline$"):
            call()


def test_a_folder_in_place_of_the_callback_is_told_before_a_step_is_taken():
    with pytest.raises(TypeError, match="on_step = 'runs/x' must be a function; .* checkpoints='runs/x'"):
        fairjax.finetune(fairjax.Experiment(), "runs/x")


PORTRAITS = np.zeros((1, 2, 64, 64, 3), np.uint8)


def test_classes_name_what_is_counted():
    seen, names = fairjax.classify(PORTRAITS), fairjax.classes()
    assert {name: probs.shape[-1] for name, probs in seen.probs.items()} == {
        name: len(names[name]) for name in seen.probs
    }
    assert names["gender"] == ("female", "male") and names["occupation"][seen.recognised[0, 0]] in names["occupation"]


def test_what_was_compiled_to_classify_serves_the_next_call():
    """Else each cell of a notebook would compile, and each program would stay."""
    fairjax.classify(PORTRAITS)
    compiled = measuring._judging.cache_info().misses
    fairjax.classify(PORTRAITS)
    assert measuring._judging.cache_info().misses == compiled


def test_classifiers_are_alike_only_if_their_heads_have_one_order():
    def made(*heads):
        return Classifier.make(MobileNetV3Config.large(4), {name: ("no", "yes") for name in heads}, SIDE)

    assert made("hat", "tie") == made("hat", "tie") and hash(made("hat", "tie")) == hash(made("hat", "tie"))
    assert made("hat", "tie") != made("tie", "hat")


def test_a_user_who_counts_in_float64_gets_the_same_images(small_world):
    usual = fairjax.Pipeline.from_pretrained(small_world).generate(["a pilot"], num_steps=2)
    with jax.enable_x64(True):
        wide = fairjax.Pipeline.from_pretrained(small_world).generate(["a pilot"], num_steps=2)
    np.testing.assert_array_equal(wide, usual)


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_a_user_who_has_jax_draw_otherwise_gets_the_same_images(small_world, generator):
    usual = fairjax.Pipeline.from_pretrained(small_world).generate(["a pilot"], num_images=3, num_steps=2)
    with jax.default_prng_impl(generator):
        otherwise = fairjax.Pipeline.from_pretrained(small_world).generate(["a pilot"], num_images=3, num_steps=2)
    np.testing.assert_array_equal(otherwise, usual)


def test_checkers_of_types_read_the_package():
    package = Path(fairjax.__file__).parent
    assert (package / "py.typed").is_file()
    assert '"py.typed"' in (README.parent / "pyproject.toml").read_text()


def test_a_folder_holds_the_adapter_that_was_saved_last(small_world, tmp_path):
    """A cell that is run again with other kinds: what was there of the first would be read as a part of it."""
    pipeline = fairjax.Pipeline.from_pretrained(small_world)
    for kinds in (("unet", "soft_prompt"), ("unet",), ("soft_prompt",), ("unet",)):
        fairjax.save_adapter(bundles.init(kinds, pipeline.params, 2, 1, jax.random.key(0)), pipeline, tmp_path)
        assert fairjax.load_adapter(tmp_path, pipeline).keys() == set(kinds)


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


MIXTURES = {"gender": (160, 40), "skin_tone": (100, 60, 30, 10), "age": (160, 40)}
"""How many of 200 portraits are to show each class."""


@pytest.fixture(scope="module")
def people():
    """Portraits of which nothing has learned."""
    return world.render_many(range(UNBIASED + 2000, UNBIASED + 2900), SEED, biased=False)


def told_of(images, people):
    """By attribute, of the images in which the evaluation classifier sees somebody: the true classes, and its own."""
    seen = fairjax.classify(images[None])
    shown = seen.has_face[0] & (people["face"] > 0)
    return {name: (people[name][shown], seen.probs[name][0][shown]) for name in world.ATTRIBUTES}


@pytest.fixture(scope="module")
def clear(people):
    return told_of(people["image"], people)


@pytest.fixture(scope="module")
def blurred(people):
    """The same, blurred until the classifier errs often, and more often one way than the other."""
    return told_of(gaussian_filter(people["image"].astype(np.float32), (0, 2, 2, 0)).round().astype(np.uint8), people)


def mixed(labels, mixture):
    """The first images of each class, as many as the mixture has."""
    chosen = np.concatenate([np.flatnonzero(labels == label)[:n] for label, n in enumerate(mixture)])
    assert len(chosen) == sum(mixture)
    return chosen


def intervals(name, probs, errors):
    """Low and high [2, classes] of the shares that are counted in images, and corrected ones as an evaluation does."""
    classes = tuple(world.ATTRIBUTES[name])
    wished = np.full(len(classes), 1 / len(classes))
    prompt = Scoring((Attribute(name, classes),), (name,)).of_prompt({name: probs}, np.ones(len(probs), bool), wished)
    _, *raw = corrected_interval(prompt[name]["counts"], 1e6 * np.eye(len(classes)), np.random.default_rng(0))
    corrected = without_errors([prompt], name, errors)["corrected"]
    return np.array(raw), np.array([corrected[label] for label in classes]).T[1:]


def test_of_a_class_that_no_picture_was_held_out_of_nothing_is_corrected():
    """It would be taken for one that is never seen."""
    prompt = {"gender": {"counts": [30, 34], "frequencies": {"female": 0.5, "male": 0.5}}}
    assert without_errors([prompt], "gender", np.array([[3, 0], [0, 0]])) == {}
    assert without_errors([prompt], "gender", np.array([[3, 0], [0, 1]])).keys() == {"corrected"}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("order", [1, -1])
def test_the_errors_that_ship_with_the_classifier_give_the_true_shares_of_a_mixture(name, order, clear):
    """Of 200 portraits, by what the classifier makes of them and what it is known to make."""
    errors = reading.errors(fairjax.Experiment().judges)
    assert errors.keys() == world.ATTRIBUTES.keys() and errors["skin_tone"].shape == (4, 4)
    mixture, (labels, probs) = MIXTURES[name][::order], clear[name]
    _, (low, high) = intervals(name, probs[mixed(labels, mixture)], errors[name])
    truth = np.array(mixture) / 200
    assert (low <= truth).all() and (truth <= high).all() and (high - low < 0.16).all()


@pytest.mark.parametrize("name", MIXTURES)
def test_correction_finds_the_true_shares_where_what_is_counted_misses_them(name, blurred):
    """Of 200 blurred portraits, by the errors that the classifier makes of all others; of 20 such choices 19 hold.

    The interval of what is counted ends below the truth in every one of them.
    """
    (labels, probs), truth, rng, held = blurred[name], np.array(MIXTURES[name]) / 200, np.random.default_rng(0), []
    for _ in range(20):
        order = rng.permutation(len(labels))
        chosen = order[mixed(labels[order], MIXTURES[name])]
        others, errors = np.setdiff1d(order, chosen), np.zeros((len(truth), len(truth)), int)
        np.add.at(errors, (labels[others], probs[others].argmax(-1)), 1)
        raw, (low, high) = intervals(name, probs[chosen], errors)
        assert raw[1][0] < truth[0]
        held.append(((low <= truth) & (truth <= high)).all() and (high - low < 0.4).all())
    assert sum(held) >= 19


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
