"""The training step against its formulas: what it logs and the gradient it takes, written out again in numpy.

The reference takes from the package the chain, the judges' networks and the targets, which have tests of their own,
and nothing of `fairness.losses` or `training.step`: weights, factors, signs and what is compared with what stand here
again. Gradients of the losses are derived by hand; only networks are differentiated.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import SIDE, fields

from fairjax import parallel
from fairjax.config import Experiment, LossSection
from fairjax.faces.judges import Verdict
from fairjax.faces.located import Faces
from fairjax.fairness.targets import targets
from fairjax.pipeline import image_keys
from fairjax.schema import load
from fairjax.training import step as steps
from fairjax.training.finetuning import Finetuning

PROMPTS, IMAGES, SOLVER_STEPS, GUIDANCE = 2, 4, 3, 2.0
ATTRIBUTES = ("gender", "age")  # not in the order of the alphabet, which is how jax orders trees
OTHERS = ("skin_tone",)  # which the classifier tells, too
IMAGE, FACE, OTHER_ATTRIBUTES = 8.0, 0.5, 0.2
FACTOR1, FACTOR2, NO_FACE, CONFIDENCE, THRESHOLD = (0.3, 0.45), (0.7, 0.6), 0.15, 0.75, 0.4

# No two numbers of one kind are alike, so that one in the place of another is seen.
CONFIG = {
    "target.attributes": ATTRIBUTES,
    "target.distribution": (0.4, 0.1, 0.3, 0.2),
    "prompts.nobody_share": 0,
    "adapter.kinds": ("text_encoder", "soft_prompt"),  # the frozen model must not be given the soft tokens
    "training.prompts_per_step": PROMPTS,
    "training.images_per_prompt": IMAGES,
    "training.num_steps": (SOLVER_STEPS, SOLVER_STEPS),
    "training.grad_steps": None,
    "training.guidance_scale": GUIDANCE,
    "loss.image": IMAGE,
    "loss.face": FACE,
    "loss.other_attributes": OTHER_ATTRIBUTES,
    "loss.factor1": dict(zip(ATTRIBUTES, FACTOR1, strict=True)),
    "loss.factor2": dict(zip(ATTRIBUTES, FACTOR2, strict=True)),
    "loss.no_face": NO_FACE,
    "loss.confidence": CONFIDENCE,
    "loss.threshold": THRESHOLD,
}


class Case(NamedTuple):
    """A step and what it starts from; every test runs the one compiled program."""

    finetuning: Finetuning
    state: Any  # its adapters change the images
    batch: steps.Batch
    texts: list[str]

    def take(self, frozen, state=None, **batch):
        """One step -> the state after it, what it logs, its images."""
        asked = (state or self.state, frozen, self.batch._replace(**batch))
        placed = parallel.replicate(asked, self.finetuning.mesh)  # one that lies elsewhere would compile it once more
        state, scalars, images = self.finetuning.compiled()(*placed)
        return state, {name: float(value) for name, value in scalars.items()}, np.asarray(images)

    def with_presence(self, shift):
        """What is frozen, with `shift` added to the classifier's logit of a face being present."""
        present = self._parts()["face"].stop - 1
        return self._with_last_layer(lambda kernel, bias: (kernel, bias.at[present].add(shift)))

    def with_attributes_alike(self):
        """What is frozen, with a classifier for which every image has every class of the attributes as likely."""
        parts = self._parts()
        outputs = np.concatenate([np.r_[parts[name]] for name in ATTRIBUTES])
        return self._with_last_layer(lambda kernel, bias: (kernel.at[:, outputs].set(0), bias.at[outputs].set(0)))

    def _with_last_layer(self, change):
        frozen = self.finetuning._frozen
        judge = frozen.judges["judge"]
        (network,) = judge["classifiers"]
        kernel, bias = change(network["classifier"]["3"]["kernel"], network["classifier"]["3"]["bias"])
        network = network | {"classifier": network["classifier"] | {"3": {"kernel": kernel, "bias": bias}}}
        return frozen._replace(judges=frozen.judges | {"judge": judge | {"classifiers": [network]}})

    def _parts(self):
        (classifier,) = self.finetuning.judges.judge.classifiers
        return classifier.parts()


@pytest.fixture(scope="module")
def case(small_world):
    finetuning = Finetuning(load(Experiment, None, fields(small_world) | CONFIG), parallel.mesh(1))
    start = finetuning.initial()
    rng = np.random.default_rng(3)

    def moved(path, leaf):
        return leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) if path[-1].key == "up" else leaf

    bundle = jax.tree_util.tree_map_with_path(moved, start.bundle)
    batch, prompts = finetuning.batch(7, bundle)  # one by which the step takes every branch
    return Case(finetuning, start._replace(bundle=bundle, ema=bundle), batch, [prompt.text for prompt in prompts])


@pytest.fixture(scope="module")
def chain(case):
    """(bundle, token ids, gradient of the images) -> the images from the step's noise, gradient of the bundle."""
    pipeline, frozen = case.finetuning.pipeline, case.finetuning._frozen
    rows = jnp.stack(jnp.divmod(jnp.arange(PROMPTS * IMAGES), IMAGES), axis=1)
    noise = pipeline.noise(image_keys(jax.random.fold_in(case.batch.key, steps.NOISE), rows))

    @jax.jit
    def run(params, bundle, ids, gradient):
        def images(bundle):
            return pipeline.sample(
                params, bundle, ids[1:], ids[:1], rows[:, 0], noise, frozen.table, SOLVER_STEPS, GUIDANCE
            )

        made, pull_back = jax.vjp(images, bundle)
        return made, pull_back(gradient)[0]

    # Given numpy arrays each time: those that lie on devices in another way would compile it once more.
    return lambda *what: jax.device_get(run(frozen.pipeline, *jax.device_get(what)))


class Seen(NamedTuple):
    """What the judges' networks make of n images."""

    logits: dict[str, np.ndarray]  # [n, classes]
    presence: np.ndarray  # [n], the logit of a face less that of none
    meaning: np.ndarray  # [n, d]
    identity: np.ndarray  # [n, d]

    def probs(self, name):
        exponentials = np.exp(self.logits[name] - self.logits[name].max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)

    def has_face(self):
        return self.presence > 0


@pytest.fixture(scope="module")
def eyes(case):
    """The judges' networks: (parameters, images) -> Seen, and the pull of gradients of it back to the images."""
    judges = case.finetuning.judges

    def look(params, images):
        (classifier,), (network,) = judges.judge.classifiers, params["judge"]["classifiers"]
        logits = classifier.logits(network, images)
        presence = logits["face"][:, 1] - logits["face"][:, 0]
        logits = {name: logits[name] for name in (*ATTRIBUTES, *OTHERS)}
        (meaning,), faces = judges.meaning(params, images), judges.judge.locator.locate({}, images)
        return Seen(logits, presence, meaning, judges.identity(params, images, faces))

    def pull_back(params, images, gradient):
        return jax.vjp(lambda images: look(params, images), images)[1](gradient)[0]

    return jax.jit(look), jax.jit(pull_back)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosine_loss(a, b):
    """1 - cos(a, b) [n], and its gradient with respect to `a` [n, d]."""
    cosine = (unit(a) * unit(b)).sum(1)
    return 1 - cosine, -(unit(b) - cosine[:, None] * unit(a)) / np.linalg.norm(a, axis=1, keepdims=True)


def wished_labels(case, seen):
    """Targets [n] by attribute, -1 for none: those of the images of each prompt among themselves."""
    both = [slice(row * IMAGES, (row + 1) * IMAGES) for row in range(PROMPTS)]
    found = [
        targets(
            [seen.probs(name)[part] for name in ATTRIBUTES], jnp.asarray(CONFIG["target.distribution"]),
            jnp.asarray(seen.has_face()[part]), jax.random.key(0), threshold=THRESHOLD,
        ).labels
        for part in both
    ]  # fmt: skip
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


class Expected(NamedTuple):
    """What the formulas give."""

    scalars: dict[str, float]
    of_faces: Seen  # gradient of the mean loss with respect to what the judges see, without the meaning's part
    of_meaning: Seen  # the meaning's part
    inside: np.ndarray  # [n], factor of the meaning's gradient inside the face box
    branches: dict[str, set]  # which values the choices took over the images


def by_hand(case, seen, original, bank):
    """The loss of the images `seen`, beside those of the frozen model `original` (sections 4.1 and appendix)."""
    n, has_face, labels = PROMPTS * IMAGES, seen.has_face(), wished_labels(case, seen)
    fairness, factors, inside, kept = np.zeros(n), np.ones(n), np.ones(n), np.ones(n, bool)
    logits_gradient = {}
    for name, label, factor1, factor2 in zip(ATTRIBUTES, labels, FACTOR1, FACTOR2, strict=True):
        probs, one_hot = seen.probs(name), label[:, None] == np.arange(2)
        fairness -= (one_hot * np.log(probs)).sum(1)
        logits_gradient[name] = np.where(label[:, None] >= 0, probs - one_hot, 0) / n
        same = (label >= 0) & original.has_face() & (label == original.probs(name).argmax(1))
        factors = np.where(same, factors, np.minimum(factors, factor1))
        inside = np.where(same, inside, np.minimum(inside, factor2))
        kept &= same & (original.probs(name).max(1) >= CONFIDENCE)
    factors = np.where(has_face, factors, NO_FACE)
    both_faces = has_face & original.has_face()
    inside = np.where(both_faces, inside, 1)

    drift = np.zeros(n)
    for name in OTHERS:
        probs, frozen = seen.probs(name), original.probs(name)
        drift += np.where(both_faces, (frozen * np.log(frozen / probs)).sum(1), 0)
        logits_gradient[name] = OTHER_ATTRIBUTES * np.where(both_faces[:, None], probs - frozen, 0) / n

    change, of_meaning = cosine_loss(seen.meaning, original.meaning)
    wished = np.stack([wished_face(i, seen, original, bank, labels, kept) for i in range(n)])
    strangeness, of_identity = cosine_loss(seen.identity, wished)
    image, face = factors * change, np.where(has_face, strangeness, 0)
    scalars = {
        "loss": np.mean(fairness + IMAGE * image + FACE * face + OTHER_ATTRIBUTES * drift),
        "loss/fairness": fairness.mean(),
        "loss/image": image.mean(),
        "loss/face": face.mean(),
        "loss/other_attributes": drift.mean(),
        "faces": has_face.mean(),
        "targeted": np.mean([label >= 0 for label in labels]),
        "prompts_without_target": 0,
    }
    for name in ATTRIBUTES:
        classes, faces = (x.reshape(PROMPTS, IMAGES) for x in (seen.probs(name).argmax(1), has_face))
        shares = [np.mean(row[there]) for row, there in zip(classes, faces, strict=True)]
        scalars[f"bias/{name}"] = np.mean([abs(share - (1 - share)) for share in shares])
        scalars[f"distance/{name}"] = np.mean([abs(share - {"gender": 0.5, "age": 0.3}[name]) for share in shares])
    both = " x ".join(ATTRIBUTES)
    scalars[f"bias/{both}"], scalars[f"distance/{both}"] = joint_bias_and_distance(seen)
    nothing = jax.tree.map(np.zeros_like, seen)
    of_identity = np.where(has_face[:, None], FACE / n * of_identity, 0)
    of_faces = nothing._replace(logits=logits_gradient, identity=of_identity)
    of_meaning = nothing._replace(meaning=IMAGE / n * factors[:, None] * of_meaning)
    branches = {
        "has a face": set(has_face), "frozen face kept": set(kept[has_face]), "factor": set(factors),
        "has a target": {bool(label >= 0) for label in np.concatenate(labels)}, "inside": set(inside),
    }  # fmt: skip
    return Expected(scalars, *jax.tree.map(np.float32, (of_faces, of_meaning)), inside, branches)


def joint_bias_and_distance(seen):
    """Over the four combinations of two attributes, the mean over prompts: the mean difference of the shares, of pairs,
    and the sum of what is too much of those that are too many."""
    cells = 2 * seen.probs(ATTRIBUTES[0]).argmax(1) + seen.probs(ATTRIBUTES[1]).argmax(1)
    biases, distances = [], []
    for row, there in zip(cells.reshape(PROMPTS, IMAGES), seen.has_face().reshape(PROMPTS, IMAGES), strict=True):
        shares = [np.mean(row[there] == cell) for cell in range(4)]
        biases.append(np.mean([abs(shares[i] - shares[j]) for i in range(4) for j in range(i)]))
        wished = CONFIG["target.distribution"]
        distances.append(sum(max(share - wish, 0) for share, wish in zip(shares, wished, strict=True)))
    return np.mean(biases), np.mean(distances)


def wished_face(i, seen, original, bank, labels, kept):
    """The face that image i is pulled to: the frozen image's own, or a near one of the bank and the wished classes."""
    if kept[i]:
        return original.identity[i]
    ours = [label[i] for label in labels]
    near = original if -1 not in ours and original.has_face()[i] else seen
    allowed = np.all([(bank[name] == label) | (label < 0) for name, label in zip(ATTRIBUTES, ours, strict=True)], 0)
    return max(unit(bank["embeddings"][allowed]), key=lambda face: face @ near.identity[i])


class Both(NamedTuple):
    """One step, by the program and by hand."""

    case: Case
    taken: tuple[Any, dict[str, float], np.ndarray]
    images: np.ndarray
    expected: Expected
    gradient: Any


@pytest.fixture(scope="module")
def both(case, chain, eyes):
    pipeline, (look, pull_back) = case.finetuning.pipeline, eyes
    plain_ids = pipeline.token_ids(["", *case.texts])
    ids = np.concatenate([plain_ids[:1], pipeline.token_ids(case.texts, case.state.bundle)])  # not in the empty prompt
    nothing = np.zeros((PROMPTS * IMAGES, SIDE, SIDE, 3), np.float32)
    images, _ = chain(case.state.bundle, ids, nothing)
    # LoRA whose `up` is zero, and no soft tokens in the prompt: the frozen model, by the same program.
    original, _ = chain(jax.tree.map(jnp.zeros_like, case.state.bundle), plain_ids, nothing)

    # The classifier is made to miss the face of one image, the one that it is least sure of.
    least, next_least = np.sort(look(case.finetuning._frozen.judges, images).presence)[:2]
    frozen = case.with_presence(-(least + next_least) / 2)
    seen, before = (jax.device_get(look(frozen.judges, x)) for x in (images, original))
    expected = by_hand(case, seen, before, jax.device_get(frozen.judges["bank"]))

    of_images = np.array(pull_back(frozen.judges, images, expected.of_meaning))
    x0, y0, x1, y1 = map(int, case.finetuning.judges.judge.locator.box)
    of_images[:, y0:y1, x0:x1] *= expected.inside[:, None, None, None]
    of_images += pull_back(frozen.judges, images, expected.of_faces)
    _, gradient = chain(case.state.bundle, ids, of_images)
    return Both(case, case.take(frozen), images, expected, gradient)


def first_moment(state):
    """Of AdamW; after a first step it is 1 - b1 times the gradient."""
    has_moments = lambda leaf: hasattr(leaf, "mu")  # noqa: E731
    (moments,) = (leaf for leaf in jax.tree.leaves(state.optimizer, is_leaf=has_moments) if has_moments(leaf))
    return moments.mu


def test_the_case_takes_every_branch(both):
    """Otherwise the comparisons below would say little."""
    branches = both.expected.branches
    for choice in ("has a face", "frozen face kept", "has a target"):
        assert branches[choice] == {True, False}, choice
    assert branches["factor"] == {1.0, *FACTOR1, NO_FACE} and branches["inside"] == {1.0, *FACTOR2}


def test_images_and_losses_are_those_of_the_formulas(both):
    _, scalars, images = both.taken
    np.testing.assert_allclose(images, both.images, atol=2e-4)
    assert scalars.keys() == both.expected.scalars.keys() | {"gradient_norm"}
    for name, value in both.expected.scalars.items():
        assert scalars[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_the_gradient_is_that_of_the_formulas(both):
    """Inside the box, too. Gradients, not updates, are compared: AdamW hides a wrong factor."""
    state, scalars, _ = both.taken
    scale = 1 - both.case.finetuning.config.training.betas[0]
    found, wanted = (jax.tree.leaves(tree) for tree in (first_moment(state), both.gradient))
    largest = max(np.abs(leaf).max() for leaf in wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one / scale, other, rtol=0, atol=1e-4 * largest)
    norm = np.sqrt(sum((leaf.astype(float) ** 2).sum() for leaf in wanted))
    assert scalars["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_the_update_is_adamws_and_the_average_follows_it(both):
    """A first step: each weight moves by the rate against its gradient's sign and decays; the average keeps a tenth."""
    (state, *_), section = both.taken, both.case.finetuning.config.training
    trees = jax.device_get((both.case.state.bundle, both.gradient, state.bundle, state.ema))
    for old, gradient, new, average in zip(*map(jax.tree.leaves, trees), strict=True):
        clear = np.abs(gradient) > 1e-3 * np.abs(gradient).max()  # of a sign that rounding does not change
        sign = gradient / (np.abs(gradient) + 1e-8)  # AdamW's epsilon tells where a gradient is small
        moved = old - section.learning_rate * (sign + section.weight_decay * old)
        np.testing.assert_allclose(new[clear], moved[clear], atol=1e-6)
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * new, atol=1e-6)  # (1 + 0) / (10 + 0), below ema_decay
    assert (int(state.step), int(state.skipped)) == (1, 0)


def test_a_step_in_which_no_image_shows_a_face_is_finite_and_counted(case):
    """Nothing is aligned then and no face is kept; the images still are, by the factor of those without a face."""
    state, scalars, _ = case.take(case.with_presence(-1e4))
    shown = {name for name in scalars if name.startswith(("bias/", "distance/"))}
    assert len(shown) == 6 and all(np.isnan(scalars[name]) for name in shown)  # nobody to count
    assert all(np.isfinite(value) for name, value in scalars.items() if name not in shown)
    assert scalars["faces"] == scalars["targeted"] == scalars["loss/fairness"] == scalars["loss/face"] == 0
    assert scalars["prompts_without_target"] == PROMPTS
    assert 0 < scalars["loss"] == pytest.approx(IMAGE * scalars["loss/image"])
    assert (int(state.step), int(state.skipped)) == (1, 0) and scalars["gradient_norm"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_images_of_a_prompt_that_asks_for_nobody_are_kept_whole(case):
    """Zeros are its distribution: whatever its images show, the loss is all of their change, and nothing else."""
    nobody = jnp.zeros_like(case.batch.distributions)
    state, scalars, _ = case.take(case.finetuning._frozen, distributions=nobody)
    _, faceless, _ = case.take(case.with_presence(-1e4))
    assert scalars["targeted"] == scalars["loss/fairness"] == scalars["loss/face"] == 0
    assert scalars["faces"] == 1 and scalars["prompts_without_target"] == 0  # none is missing
    assert np.isnan(scalars["distance/gender"])  # from what?
    assert scalars["loss/image"] == pytest.approx(faceless["loss/image"] / NO_FACE)
    assert int(state.step) == 1 and scalars["gradient_norm"] > 0
    _, one, _ = case.take(case.finetuning._frozen, distributions=nobody.at[1].set(case.batch.distributions[1]))
    _, both, _ = case.take(case.finetuning._frozen)
    jointly = "distance/gender x age"  # the mean over prompts that ask for somebody
    assert 0 < one[jointly] != both[jointly] > 0
    assert 0 < one["targeted"] < both["targeted"] and 0 < one["loss/fairness"] < both["loss/fairness"]


def test_a_prompt_whose_images_have_no_target_is_counted_apart_from_one_whose_have(case):
    """A distribution that asks for what all images of the first are: where every image is, is told for each prompt."""
    wished = np.array(case.batch.distributions)
    wished[0] = 1 / 4
    _, scalars, _ = case.take(case.with_attributes_alike(), distributions=jnp.asarray(wished))
    assert scalars["prompts_without_target"] == 1 and 0 < scalars["targeted"] < 1
    assert np.isfinite(list(scalars.values())).all()


def test_a_step_in_which_no_image_is_sure_of_a_target_is_finite_and_counted(case):
    """Images that look alike are as likely to be assigned each class: nothing is aligned, the rest still pulls."""
    even = jnp.full_like(case.batch.distributions, 1 / 4)
    state, scalars, _ = case.take(case.with_attributes_alike(), distributions=even)
    assert scalars["faces"] > 0 and scalars["targeted"] == scalars["loss/fairness"] == 0
    assert scalars["prompts_without_target"] == PROMPTS
    assert np.isfinite(list(scalars.values())).all() and scalars["loss/image"] > 0 and scalars["loss/face"] > 0
    assert (int(state.step), int(state.skipped)) == (1, 0) and scalars["gradient_norm"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_steps_on_the_same_noise_and_prompts_lower_the_fairness_loss(case):
    state, losses = case.state, []
    for _ in range(30):
        state, scalars, _ = case.take(case.finetuning._frozen, state)
        losses.append(scalars["loss/fairness"])
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_of_another_name_is_added_with_the_weight_of_its_name(monkeypatch):
    """So that one more is named where it is computed and where its weight is, and nowhere else."""

    class Weights(LossSection):
        another: float = 3.0

    n, sees = 4, np.array([True, True, False, True])
    verdict = Verdict({"gender": jnp.zeros((n, 2))}, Faces(None, None, None, sees), None)
    each = {"fairness": jnp.full(n, 2.0), "another": jnp.arange(n)}
    seen = ([jnp.full((1, n, 2), 0.5)], sees[None]), [jnp.zeros(n, int)], jnp.zeros(n, bool)
    monkeypatch.setattr(steps.Step, "losses_of", lambda *_: (each, (verdict, verdict), seen))
    monkeypatch.setattr(steps.Step, "_asked_for_somebody", lambda *_: jnp.ones(n, bool))
    step = steps.Step(None, None, ("gender",), (None,), None, Weights())
    batch = steps.Batch(jnp.zeros((1, 5), int), None, None, jnp.full((1, 2), 0.5), None, None)
    total, scalars = step.total_loss(None, None, None, batch)
    assert total == scalars["loss"] == 2 + 3 * 1.5 and scalars["loss/another"] == 1.5
