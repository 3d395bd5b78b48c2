"""One training step against PyTorch: the same weights, noise and faces, the same loss and gradient.

The reference, `benchmarks/reference_torch.py`, reads the model's folders by diffusers and transformers, has the losses
as formulas and the targets as transports by POT over every set of labels. From the package it takes the starting noise
and where faces are, which have tests of their own.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sharp_judges
import torch
from small_models import PHOTOS, THIN, draw_over_photos, finetuning_of, over
from small_world import fields

from benchmarks import reference_torch
from benchmarks.torch_networks import face_crops, nchw, nhwc, torch_align
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.faces import detection
from fairjax.pipeline import image_keys
from fairjax.schema import load
from fairjax.training import step as steps
from fairjax.training.finetuning import Finetuning

# Weights by which each loss has its part in the gradient: with the experiment's 8 and 0.1, random judges' would drown.
IMAGE, FACE, CONFIDENCE, THRESHOLD = 400, 5, 0.6, 0.65


class Taken(NamedTuple):
    """One step, by fairjax or by PyTorch."""

    loss: float
    images: np.ndarray  # [n, h, w, 3]
    gradient: dict[str, Any]  # of the adapters


class Both(NamedTuple):
    ours: Taken
    theirs: Taken
    chosen: reference_torch.Choice


def exactly(cells, sizes, threshold, cost_weights):
    """Who is to become what, for few images."""
    return reference_torch.by_emd(reference_torch.every(cells), sizes, threshold, cost_weights)


def take_both(finetuning, frozen, state, batch, locate, assign, minibatch, decoded=None):
    """The same step by fairjax and by PyTorch."""
    program = steps.program(finetuning._step, finetuning.mesh)  # of what is drawn over photographs, too
    after, scalars, images = program(state, frozen, batch)
    first_moment = optax.tree.get(after.optimizer, "mu")  # after a first step, 1 - b1 times the gradient
    share = 1 - finetuning.config.training.betas[0]
    gradient = jax.tree.map(lambda moment: np.asarray(moment) / share, first_moment)
    ours = Taken(float(scalars["loss"]), np.asarray(images), gradient)

    n = len(images)
    rows = jnp.stack([jnp.zeros(n, int), jnp.arange(n)], axis=1)  # prompt, number of the image
    noise = nchw(np.array(finetuning.pipeline.noise(image_keys(jax.random.fold_in(batch.key, steps.NOISE), rows))))

    def there(images):
        faces = jax.device_get(locate(nhwc(images)))
        return reference_torch.Faces(*map(np.array, (faces.boxes, faces.landmarks, faces.has_face)))

    reference = reference_torch.read(finetuning, there, assign, "cpu", torch.float32)
    reference.decoded = decoded or reference.decoded
    bundle = jax.tree.map(lambda leaf: torch.tensor(np.array(leaf)), state.bundle)
    ids = np.concatenate([batch.empty, batch.plain_ids])
    taken = reference(bundle, ids, noise, int(batch.num_steps), minibatch)
    gradient = jax.tree.map(lambda leaf: leaf.numpy(), taken.gradient)
    return Both(ours, Taken(taken.loss, nhwc(taken.images), gradient), taken.chosen)


def moved(state, by):
    """The state with adapters that change the images."""
    rng = np.random.default_rng(3)

    def move(path, leaf):
        return leaf + by * rng.normal(size=leaf.shape).astype(np.float32) if path[-1].key == "up" else leaf

    return state._replace(bundle=jax.tree_util.tree_map_with_path(move, state.bundle))


@pytest.fixture(scope="module")
def photographs(models, tmp_path_factory):
    """A step of experiment 4 on photographs, with every kind of judge."""
    judges, photos = tmp_path_factory.mktemp("judges"), nchw(PHOTOS)
    detector, weights = detection.load()
    locate = partial(jax.jit(detector.locate), weights)
    faces = jax.device_get(locate(PHOTOS))
    chips = torch_align(photos[np.array(faces.has_face)], faces.landmarks[faces.has_face], 112)
    sharp_judges.write(judges, models, photos, torch.cat(face_crops(photos, faces)), chips)
    changes = {
        "judges.classifiers": (str(judges / "classifier.pt"),),
        "judges.semantics": (str(judges / "clip"), str(judges / "dinov2")),
        "judges.face": str(judges / "face.pth"),
        "loss.image": IMAGE,
        "loss.face": FACE,
        "loss.threshold": THRESHOLD,
        "loss.confidence": CONFIDENCE,
        "judges.margin": 0.5,
    }
    finetuning = finetuning_of(models, "exp4-gender-race-age-both", **changes)
    state = moved(finetuning.initial(), 0.1)
    batch, _ = finetuning.batch(0, state.bundle)
    wish, sizes = np.outer(np.full(8, 1 / 8), [0.75, 0.25]).ravel(), {"gender": 2, "race": 4, "age": 2}
    assign = exactly(wish, sizes, THRESHOLD, {"age": [[1, 1], [2, 1]]})
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_over_photos(monkeypatch)
        frozen = over(finetuning._frozen, PHOTOS)
        drawn_over = lambda drawn: photos + THIN * drawn  # noqa: E731
        return take_both(finetuning, frozen, state, batch, locate, assign, len(PHOTOS), drawn_over)


@pytest.fixture(scope="module")
def small(small_world):
    """Faces in one place, a classifier of whole pictures, a bank that knows whose its faces are: the embedded world's
    kind, with small networks."""
    return in_a_world(fields(small_world), 0.1)


@pytest.fixture(scope="module")
def soft(small_world):
    """The same with soft tokens in place of LoRA (experiment 2), and as there the nearest face of all, for those alone
    that have a target."""
    changes = {
        "adapter.kinds": ("soft_prompt",), "loss.bank_face": "nearest", "loss.face_untargeted": False,
        "loss.threshold": 0.1,
    }  # fmt: skip
    return in_a_world(fields(small_world) | changes, 0.1)


@pytest.fixture(scope="module")
def soft_and_unet(small_world):
    """The same with soft tokens beside LoRA of the UNet."""
    return in_a_world(fields(small_world) | {"adapter.kinds": ("soft_prompt", "unet")}, 0.1)


@pytest.fixture(scope="module")
def portraits():
    """The embedded world's networks themselves."""
    return in_a_world({}, 0.02)


def in_a_world(models, by):
    changes = {
        "training.prompts_per_step": 1, "training.images_per_prompt": 6, "training.grad_steps": None,
        "training.num_steps": (3, 3), "loss.face": 2.0, "loss.confidence": 0.75,
    }  # fmt: skip
    finetuning = Finetuning(load(Experiment, None, models | changes), parallel.mesh(1))
    state = moved(finetuning.initial(), by)
    batch, _ = finetuning.batch(0, state.bundle)
    locator = finetuning.judges.judge.locator
    assign = exactly([0.5, 0.5], {"gender": 2}, finetuning.config.loss.threshold, {})
    return take_both(
        finetuning, finetuning._frozen, state, batch, lambda images: locator.locate({}, images), assign, minibatch=4
    )


def test_the_step_takes_every_branch(photographs, small, soft):
    """Otherwise the comparison below would say little."""
    for both, attributes in ((photographs.chosen, {0.6}), (small.chosen, set())):
        assert set(both.factor1) == {0.2, 1} | attributes and set(both.kept) == {True, False}, both
    assert set(photographs.chosen.factor2) >= {0.2, 0.3}, photographs.chosen
    assert set(soft.chosen.labels["gender"]) == {-1, 0, 1}, soft.chosen  # of pictures that all show a face


@pytest.mark.parametrize(
    ("which", "kinds"),
    [
        ("photographs", {"text_encoder", "unet"}),
        ("small", {"unet"}),
        ("soft", {"soft_prompt"}),
        pytest.param("soft_and_unet", {"soft_prompt", "unet"}, marks=pytest.mark.slow),
        pytest.param("portraits", {"unet"}, marks=pytest.mark.slow),
    ],
)
def test_the_step_is_that_of_pytorch(which, kinds, request):
    """Images, loss and the adapters' gradient."""
    ours, theirs, _ = request.getfixturevalue(which)
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-4)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert ours.gradient.keys() == theirs.gradient.keys() == kinds
    for kind in kinds:
        found, wanted = (
            np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(taken.gradient[kind])]) for taken in (ours, theirs)
        )
        assert np.linalg.norm(found - wanted) <= 2e-4 * np.linalg.norm(wanted) > 0, kind
        assert all(np.any(leaf) for leaf in jax.tree.leaves(ours.gradient[kind])), kind
