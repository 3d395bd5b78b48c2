"""What changes of a word in the code once left unseen: each of these fails for some that no other test told of.

Options that would be ignored, rows of one kind in place of another's, an average over one.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from small_world import fields

from fairjax import api, files, parallel
from fairjax.adapters import lora
from fairjax.config import Experiment, LossSection, TrainingSection
from fairjax.evaluation.measuring import Seen
from fairjax.evaluation.preservation import frechet, preserved
from fairjax.evaluation.scores import Scoring, paired
from fairjax.faces import classifier_training
from fairjax.faces.geometry import crop, expand
from fairjax.faces.judges import Judge
from fairjax.faces.located import Faces
from fairjax.fairness.attributes import Attribute
from fairjax.hub import find
from fairjax.models.clip import CLIPTextConfig, CLIPTextModel
from fairjax.models.functional import functional
from fairjax.models.mobilenet import MobileNetV3Config, Row
from fairjax.pipeline import solver_table
from fairjax.schema import Section, load
from fairjax.training import state as states
from fairjax.training import step as steps
from fairjax.training.finetuning import Finetuning
from fairjax.training.fit import Fit, fit
from fairjax.training.preservation import Pairs, Preservation
from fairjax.training.resuming import differences
from fairjax.training.validation import Looked, Validation

GENDER = Attribute("gender", ("female", "male"))


@pytest.mark.parametrize(
    ("uneven", "measure", "values"), [(False, "bias", [-0.75, 0.25]), (True, "total_variation", [-0.375, -0.125])]
)
def test_a_difference_is_of_after_less_before_and_of_its_own_prompts(uneven, measure, values):
    """Where a single prompt is to be uneven, it is the distance's, of all kinds of prompts."""

    def seen(men):  # of eight images of each prompt
        shown = np.array([[0] * (8 - number) + [1] * number for number in men])
        return Seen({"gender": np.eye(2)[shown]}, np.ones(shown.shape, bool), None, None)

    wished = np.full((4, 2), 0.5)
    wished[3] = [1, 0] if uneven else wished[3]
    columns = {"before": seen((8, 8, 2, 2)), "after": seen((4, 6, 2, 0))}
    rows = paired(Scoring((GENDER,), ("gender",)), columns, wished, {"trained": [0, 1], "held_out": [2, 3]})
    assert [(row["first"], row["second"], row["measure"]) for row in rows] == [("before", "after", measure)] * 2
    assert [(row["kind"], row["value"]) for row in rows] == list(zip(("trained", "held_out"), values, strict=True))


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_a_judge_averages_its_classifiers_of_what_the_margin_shows(margin):
    """And where the detector finds no face there is none, whatever a classifier makes of it."""
    faces = Faces(jnp.array([[4.0, 4, 8, 8]] * 2), jnp.zeros((2, 5, 2)), jnp.ones(2), jnp.array([True, False]))

    def classifier(factor):
        def logits(_, chips):
            bright = factor * chips.mean((1, 2, 3))
            return {"gender": jnp.stack([bright, jnp.zeros(2)], 1), "face": jnp.array([[0.0, 1.0]] * 2)}

        heads = {"gender": GENDER.classes, "face": ("absent", "present")}
        return SimpleNamespace(image_size=4, heads=heads, logits=logits)

    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    judge = Judge(SimpleNamespace(locate=lambda params, images: faces), (classifier(1), classifier(3)), margin)
    verdict = judge.look({"locator": {}, "classifiers": [{}, {}]}, images)
    odds = verdict.logits["gender"][:, 0] - verdict.logits["gender"][:, 1]
    bright = crop(images, expand(faces.boxes, margin), 4).mean((1, 2, 3))
    np.testing.assert_allclose(odds, (1 + 3) / 2 * bright, rtol=1e-5)
    assert verdict.has_face.tolist() == [True, False]


def test_the_average_and_the_second_moment_follow_their_own_rates_after_many_steps():
    section = TrainingSection(betas=(0.8, 0.9), ema_decay=0.75, learning_rate=0.5, weight_decay=0)
    start = states.initial({"x": jnp.ones(3)}, section)._replace(step=jnp.int32(10_000))
    gradient = jnp.array([1.0, 2.0, 3.0])
    after = states.update(start, jnp.float32(1), {"x": gradient}, section)
    np.testing.assert_allclose(after.ema["x"], 0.75 + 0.25 * after.bundle["x"], rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(after.optimizer, "nu")["x"], 0.1 * gradient**2, rtol=1e-6)


@pytest.fixture(scope="module")
def asked(small_world):
    """A finetuning with options that are not the defaults."""
    changes = {
        "target.attributes": ("gender", "age"), "target.cost_weights": {"age": ((1, 1), (2, 1))}, "seed": 5,
        "training.solver": "ddim", "training.gradient": "uniform", "training.grad_steps": 2,
        "training.num_steps": (2, 4), "training.prompts_per_step": 1, "training.images_per_prompt": 2,
        "loss.num_sets": 7, "loss.default_factor": 0.35,
    }  # fmt: skip
    return Finetuning(load(Experiment, None, fields(small_world) | changes), parallel.mesh(1))


def test_only_steps_in_a_row_that_are_not_finite_end_a_run(asked, monkeypatch):
    """Every other one of eight, where two in a row would."""
    losses, told = iter([np.nan, 1.0] * 4), []
    scalars = lambda: {"loss": jnp.float32(next(losses)), "gradient_norm": jnp.float32(1)}  # noqa: E731
    monkeypatch.setattr(asked, "compiled", lambda: lambda state, frozen, batch: (state, scalars(), None))
    training = asked.config.training.model_copy(update={"steps": 8, "max_skipped": 2})
    monkeypatch.setattr(asked, "config", asked.config.model_copy(update={"training": training}))
    asked.run(on_step=lambda report: told.append(report.step))
    assert told == [*range(1, 9)]


def test_looks_are_taken_as_training_draws_with_noise_of_their_own(asked, tmp_path):
    class Heard(Exception):
        pass

    def generate(prompts, num_images, **how):
        raise Heard(num_images, how)

    config = asked.config.model_copy(
        update={
            "training": asked.config.training.model_copy(update={"guidance_scale": 3.0}),
            "validation": asked.config.validation.model_copy(update={"num_steps": 3, "images_per_prompt": 6}),
        }
    )
    finetuning = SimpleNamespace(**vars(asked) | {"config": config, "pipeline": SimpleNamespace(generate=generate)})
    validation, bundle = Validation(finetuning, tmp_path, 0), {"an": "adapter"}
    with pytest.raises(Heard) as heard:
        validation._look(bundle)
    images, how = heard.value.args
    assert images == 6 and how.pop("bundle") is bundle and how.pop("on_batch") is validation.on_batch
    seeds = {how.pop("seed")}
    assert how == {"num_steps": 3, "guidance_scale": 3.0, "solver": "ddim", "batch_size": None}
    finetuning.config = config.model_copy(update={"seed": 6})
    with pytest.raises(Heard) as heard:
        validation._look(bundle)
    assert len(seeds | {heard.value.args[1]["seed"]}) == 2


def test_a_look_sees_the_variety_within_the_classes_of_each_models_own_images(asked, tmp_path):
    """Of four images of each prompt the first two are alike, and the others of theirs; classes are told apart so."""
    finetuning = SimpleNamespace(**vars(asked))
    validation = Validation(finetuning, tmp_path, 0)
    prompts, pairs = len(validation.prompts), np.eye(4)[[0, 0, 1, 2]]

    def looked(women):
        gender = np.eye(2)[np.tile(women, (prompts, 1))]
        probs = {"gender": gender, "age": np.tile([1.0, 0.0], (prompts, 4, 1))}
        return Looked(Seen(probs, np.ones((prompts, 4), bool), None, None), [np.tile(pairs, (prompts, 1, 1))])

    looks = [looked([0, 1, 1, 1]), looked([0, 0, 1, 1])]
    validation._look = lambda bundle: looks.pop(0)
    # before, three of a class that all differ; after, two that are alike and two that differ
    assert validation._measured({})["diversity"] == pytest.approx(0.5)


def test_what_a_finetuning_gives_is_the_average(small_world, monkeypatch):
    last, average = {"soft_prompt": {"embedding": np.zeros(2)}}, {"soft_prompt": {"embedding": np.ones(2)}}
    ended = states.initial(last, TrainingSection())._replace(ema=average)
    monkeypatch.setattr(api, "Finetuning", lambda config: SimpleNamespace(run=lambda *_: ended))
    found = api.finetune(load(Experiment, None, fields(small_world)))
    np.testing.assert_array_equal(found.bundle["soft_prompt"]["embedding"], np.ones(2))


def test_networks_trained_from_the_start_are_averages_too(tmp_path):
    plan, rates = Fit(3, 8, 0.1, weight_decay=0.0), optax.warmup_cosine_decay_schedule(0, 1, 0, 3, 0.02)

    def loss(params, batch, key):
        return params["x"].sum(), ({}, {})

    found = fit(
        "x", tmp_path, plan, {"x": jnp.ones(2)}, loss, lambda _: np.ones(8), jax.random.key(0), Console(quiet=True)
    )
    last = average = 1.0
    for step in range(3):
        last -= 0.1 * float(rates(step))  # Adam, of a gradient that is always the same
        decay = (1 + step) / (10 + step)
        average = decay * average + (1 - decay) * last
    np.testing.assert_allclose(found["x"], average, rtol=1e-5)
    assert abs(average - last) > 1e-3


def test_what_a_run_that_goes_on_may_change_is_what_changes_none_of_its_numbers():
    before, kept = Experiment(), set()
    sections = [(name, section) for name, section in before if isinstance(section, Section)]
    for name, section in sections:
        for field in type(section).model_fields:
            changed = section.model_copy(update={field: "something else"})
            if not differences(before, before.model_copy(update={name: changed})):
                kept.add(f"{name}.{field}")
    free = ("steps", "microbatch", "max_skipped", "save_every", "keep", "keep_every", "images_every", "wandb")
    looks = {f"validation.{field}" for field in type(before.validation).model_fields}
    assert kept == looks | {f"training.{field}" for field in free}
    assert all(differences(before, before.model_copy(update={name: "other"})) for name in ("model", "seed"))


def test_seed_solver_and_range_of_steps_are_those_that_were_asked_for(asked):
    jax.tree.map(np.testing.assert_array_equal, asked._table, solver_table(asked.pipeline.schedule, "ddim", 4))
    other = Finetuning(asked.config.model_copy(update={"seed": 6}), asked.mesh)
    keys = {tuple(jax.random.key_data(f.batch(n, {})[0].key).tolist()) for f in (asked, other) for n in (0, 1)}
    assert len(keys) == 4
    assert {int(asked.batch(number, {})[0].num_steps) for number in range(24)} == {2, 3, 4}


def test_targets_are_found_as_was_asked_for(asked, monkeypatch):
    heard = {}

    def targets(probs, *_, **how):
        heard.update(how)
        return SimpleNamespace(labels=(probs[0][:, 0],))

    monkeypatch.setattr(steps, "targets", targets)
    keys, faces = jax.random.split(jax.random.key(0), 1), jnp.ones((1, 2), bool)
    asked._step._targets(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2)), jnp.zeros((1, 4)), faces, keys)
    assert (heard["num_sets"], heard["threshold"]) == (7, asked.config.loss.threshold)
    np.testing.assert_array_equal(heard["cost_weights"][1], [[1, 1], [2, 1]])


def test_an_attribute_without_a_factor_of_its_own_has_the_default_one(asked):
    """Of three images the first differs in the first attribute, the second in the second, the last in none."""
    keep = Preservation(asked._step.judges, asked._step.attributes, asked.config.loss, None)
    labels, frozen_labels = [jnp.array([1, 0, 0]), jnp.array([0, 1, 0])], [jnp.zeros(3, int)] * 2
    pairs = Pairs(None, None, SimpleNamespace(has_face=jnp.ones(3, bool)), None, labels, frozen_labels)
    np.testing.assert_allclose(keep._factors(pairs, {"gender": 0.2}, 1.0), [0.2, 0.35, 1])


def test_the_gradient_is_the_one_that_was_asked_for(asked, monkeypatch):
    heard = {}
    pipeline = SimpleNamespace(noise=asked.pipeline.noise, sample=lambda *_, **how: heard.update(how))
    monkeypatch.setattr(steps.parallel, "local_images", jnp.arange)
    batch, _ = asked.batch(0, {})
    frozen = SimpleNamespace(pipeline=None, table=None)
    dataclasses.replace(asked._step, pipeline=pipeline).sampler(frozen, batch)({}, batch.ids)
    assert (heard["gradient"], heard["grad_steps"]) == ("uniform", 2)


def test_the_kernels_that_a_lora_changes_stay_float32_in_a_bfloat16_unet(small_world):
    changes = {
        "training.precision": "bfloat16", "adapter.kinds": ("unet",), "training.images_per_prompt": 2,
        "training.prompts_per_step": 1, "training.microbatch": 1,
    }  # fmt: skip
    finetuning = Finetuning(load(Experiment, None, fields(small_world) | changes), parallel.mesh(1))
    held = jax.eval_shape(finetuning._held, finetuning.pipeline.params)["unet"]
    assert {kernel.dtype for kernel in lora.select(held, lora.UNET_TARGETS).values()} == {jnp.dtype("float32")}
    assert any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(held))


def test_a_face_has_the_label_of_its_own_picture(tmp_path, monkeypatch):
    """Of five pictures the second and the fourth show one; rare classes are to count as much as common ones."""

    class Heard(Exception):
        pass

    def classification(classifier, pixels, labels, *_, balanced=False):
        raise Heard(labels["light"].tolist(), balanced)

    monkeypatch.setattr(classifier_training.learning, "classification", classification)
    faces, labels = np.zeros((5, 8, 8, 3), np.uint8), {"light": np.array([0, 1, 1, 0, -1])}
    chips = classifier_training.Chips(faces, labels, {"light": ("dark", "bright")}, np.array([1, 3]))
    config, plan = MobileNetV3Config((Row(3, 16, 16, False, False, 1),), 8, 2, 8), SimpleNamespace(batch_size=2)
    with pytest.raises(Heard, match=r"\(\[1, 0\], True\)"):
        classifier_training.train("classifier", tmp_path, chips, chips, config, plan, 0, 0.0, Console(quiet=True))


def test_lora_of_the_text_encoder_is_of_attention_and_mlp():
    """As in the authors' scripts: q, k, v, out, fc1 and fc2 of each layer."""
    text = CLIPTextConfig.from_dict(files.read_json(find("portraits") / "text_encoder" / "config.json"))
    found = lora.select(functional(lambda rngs: CLIPTextModel(text, rngs=rngs)).abstract, lora.TEXT_ENCODER_TARGETS)
    parts = [*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]
    layers = range(text.num_hidden_layers)
    assert set(found) == {f"text_model.encoder.layers.{layer}.{part}" for layer in layers for part in parts}


def test_the_floor_of_the_frechet_distance_is_of_one_half_from_the_other():
    x = np.random.default_rng(0).normal(size=(2, 6, 3))
    found = preserved({"before": x}, {"before": np.zeros((2, 6), int)})
    halves = (x[:, start::2].reshape(-1, 3) for start in (0, 1))
    assert found["frechet_floor"] == pytest.approx(frechet(*halves))


def test_what_must_change_is_felt_less_only_where_both_images_show_a_face():
    """Without one in the frozen image nobody knows where in it the same face would be."""
    rng, box = np.random.default_rng(0), np.tile(np.array([[1.0, 1, 3, 3]]), (4, 1))
    images, original = rng.normal(size=(2, 4, 4, 4, 3))
    judged = [SimpleNamespace(faces=SimpleNamespace(boxes=box), has_face=np.array(shown)) for shown in
              ([True, True, False, False], [True, False, True, False])]  # fmt: skip
    judges = SimpleNamespace(
        judge=SimpleNamespace(squares=lambda faces: faces.boxes),
        meaning=lambda params, images: [images.reshape(len(images), -1)],
    )
    keep = Preservation(judges, ("gender",), LossSection(factor2={"gender": 0.2}), None)

    def change(images, *labels):
        pairs = Pairs(images, original, *judged, [np.full(4, labels[0])], [np.full(4, labels[1])])
        return keep._change(pairs, {}).sum()

    must, need_not = (jax.grad(change)(images, *labels) for labels in ((1, 0), (0, 0)))
    np.testing.assert_allclose(must[0, 1:3, 1:3], 0.2 * need_not[0, 1:3, 1:3], rtol=1e-5)
    np.testing.assert_array_equal(must[1:], need_not[1:])
