"""One training step of experiment 4 against PyTorch: the same weights, noise and faces, the same loss and gradient.

The reference reads the model's folders by diffusers and transformers and has the losses as formulas. From the package
it takes the starting noise, where faces are, and the targets, which have tests of their own.
"""

from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sharp_judges
import torch
import transformers
from small_models import THIN, draw_over_photos, finetuning_of, over, photograph
from torch.func import functional_call
from torch.nn import functional as F
from torch_references import TorchMobileNetV3, clip_pixels, dino_pixels, face_crops, nchw, nhwc, sfnet20, torch_align

from fairjax.faces import detection
from fairjax.fairness.targets import targets
from fairjax.pipeline import image_keys
from fairjax.training import step as steps

SOLVER_STEPS, GUIDANCE = 2, 7.5
# Weights by which each loss has its part in the gradient: with the experiment's 8 and 0.1, random judges' would drown.
IMAGE, FACE, CONFIDENCE, THRESHOLD, NO_FACE = 400, 5, 0.6, 0.65, 0.2
HEADS = {"gender": slice(0, 2), "race": slice(2, 6), "age": slice(6, 8)}
FACTOR1 = {"gender": 0.2, "race": 0.6, "age": 0.6}
FACTOR2 = {"gender": 0.2, "race": 0.3, "age": 0.3}
DISTRIBUTION = np.outer(np.full(8, 1 / 8), [0.75, 0.25]).ravel()
COST_WEIGHTS = (None, None, np.array([[1, 1], [2, 1]]))

PHOTOS = np.stack([photograph(), photograph(100, 0, 230)[:, ::-1], photograph(150, 40, 170), photograph(300, 300, 200)])
"""The last shows no face."""


class Reference(NamedTuple):
    """The step's networks in PyTorch, in inference mode and without gradients of their own."""

    text_encoder: Any
    unet: Any
    vae: Any
    scheduler: Any
    classifier: Any
    clip: Any
    dino: Any
    face: Any


def read_reference(model, judges):
    networks = Reference(
        transformers.CLIPTextModel.from_pretrained(model / "text_encoder"),
        diffusers.UNet2DConditionModel.from_pretrained(model / "unet"),
        diffusers.AutoencoderKL.from_pretrained(model / "vae"),
        diffusers.DPMSolverMultistepScheduler.from_pretrained(model / "scheduler"),
        TorchMobileNetV3(8),
        transformers.CLIPVisionModelWithProjection.from_pretrained(judges / "clip"),
        transformers.Dinov2Model.from_pretrained(judges / "dinov2"),
        sfnet20(judges / "face.pth"),
    )
    networks.classifier.load_state_dict(torch.load(judges / "classifier.pt"))
    for network in networks:
        if isinstance(network, torch.nn.Module):
            network.eval().requires_grad_(False)
    return networks


def merged(network, adapter):
    """The network's parameters by name, with `up` after `down` added to each adapted weight."""
    weights = dict(network.named_parameters())
    for module, factors in adapter.items():
        name = f"{module}.weight"
        if name not in weights:  # newer transformers drop what every published file has
            name = name.removeprefix("text_model.")
        weights[name] = weights[name] + (factors["down"] @ factors["up"]).T.reshape(weights[name].shape)
    return weights


def draw(reference, bundle, ids, noise):
    """Images [n, 3, h, w] from token ids of the empty prompt and the prompt, by the authors' adjusted finetuning.

    The UNet's image input is detached, and a hook scales the gradient of each noise prediction.
    """
    text_weights = merged(reference.text_encoder, bundle["text_encoder"])
    unet_weights = merged(reference.unet, bundle["unet"])
    states = functional_call(reference.text_encoder, text_weights, (torch.tensor(ids, dtype=torch.long),))
    context = states.last_hidden_state.repeat_interleave(len(noise), 0)
    scheduler = reference.scheduler
    scheduler.set_timesteps(SOLVER_STEPS)
    alpha, abar = scheduler.alphas[scheduler.timesteps], scheduler.alphas_cumprod[scheduler.timesteps]
    influence = (1 - alpha) / ((1 - abar).sqrt() * abar.sqrt())
    scales = (1 / influence) / (1 / influence).log().mean().exp()
    latents = noise
    for timestep, scale in zip(scheduler.timesteps, scales, strict=True):
        inputs = (torch.cat([latents.detach()] * 2), timestep, context)
        plain, prompted = functional_call(reference.unet, unet_weights, inputs).sample.chunk(2)
        prediction = plain + GUIDANCE * (prompted - plain)
        if prediction.requires_grad:
            prediction.register_hook(lambda gradient, scale=scale: gradient * scale)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    drawn = reference.vae.decode(latents / reference.vae.config.scaling_factor).sample.clamp(-1, 1)
    return (nchw(PHOTOS) + THIN * drawn).clamp(-1, 1)


class Seen(NamedTuple):
    """What is seen of n images; nothing of use where there is no face."""

    faces: Any  # fairjax's Faces, as arrays of numpy
    logits: dict[str, torch.Tensor]  # [n, classes]
    identity: torch.Tensor  # [n, d]

    def probs(self, name):
        return self.logits[name].softmax(1).detach()


def look(reference, locate, images):
    faces = locate(nhwc(images.detach()))
    there = torch.tensor(np.flatnonzero(faces.has_face))
    logits, identities = torch.zeros(len(images), 8), torch.zeros(len(images), 512)
    logits = logits.index_copy(0, there, reference.classifier(torch.cat(face_crops(images, faces))))
    chips = torch_align(images[there], faces.landmarks[there], 112)
    both = sum(F.normalize(reference.face(x)) for x in (chips, chips.flip(3)))
    identities = identities.index_copy(0, there, both)
    return Seen(faces, {name: logits[:, part] for name, part in HEADS.items()}, identities)


def wished_labels(seen):
    """The class that every image should become, by attribute [n]; -1 for none."""
    probs = [jnp.asarray(seen.probs(name).numpy()) for name in HEADS]
    wish = jnp.asarray(DISTRIBUTION, jnp.float32)
    assign = jax.jit(lambda *args: targets(*args, threshold=THRESHOLD, cost_weights=COST_WEIGHTS).labels)
    found = assign(probs, wish, seen.faces.has_face, jax.random.key(0))  # few images: exact, and the key is not used
    return dict(zip(HEADS, map(np.array, found), strict=True))


def meaning(reference, images):
    """Embeddings [n, d] by CLIP and by DINOv2."""
    clip = reference.clip(clip_pixels(images, reference.clip.config.image_size)).image_embeds
    return clip, reference.dino(dino_pixels(images)).pooler_output


def scaled_inside(images, faces, before, factors):
    """The same images, whose gradient is multiplied by `factors` [n] where both face boxes are."""
    scale = np.ones(images.shape, np.float32)
    row, column = (np.arange(side) + 0.5 for side in images.shape[2:])
    for i in np.flatnonzero(faces.has_face & before.has_face):
        (left, top, right, bottom), other = faces.boxes[i], before.boxes[i]
        rows = (row >= max(top, other[1])) & (row < min(bottom, other[3]))
        columns = (column >= max(left, other[0])) & (column < min(right, other[2]))
        scale[i, :, rows[:, None] & columns] = factors[i]
    copy = images * 1
    copy.register_hook(lambda gradient: gradient * torch.tensor(scale))
    return copy


class Branches(NamedTuple):
    """What was chosen for each image [n]."""

    labels: dict[str, np.ndarray]
    factor1: np.ndarray
    factor2: np.ndarray
    kept: np.ndarray  # whether the frozen image's face is the one to keep


def choose(seen, before):
    n, has_face, labels = len(PHOTOS), seen.faces.has_face, wished_labels(seen)
    factor1, factor2, kept = np.ones(n), np.ones(n), has_face & before.faces.has_face
    for name, label in labels.items():
        frozen = np.where(before.faces.has_face, before.probs(name).argmax(1), -1)
        same = (label >= 0) & (label == frozen)
        factor1 = np.where(same, factor1, np.minimum(factor1, FACTOR1[name]))
        factor2 = np.where(same, factor2, np.minimum(factor2, FACTOR2[name]))
        kept &= same & (before.probs(name).amax(1).numpy() >= CONFIDENCE)
    return Branches(labels, np.where(has_face, factor1, NO_FACE), factor2, kept)


def loss_of(reference, chosen, images, seen, original, before, bank):
    """The mean over the images (section 4.1 and the appendix of the paper)."""
    has_face = torch.tensor(seen.faces.has_face)
    fairness = sum(
        F.cross_entropy(seen.logits[name], torch.tensor(label).long(), ignore_index=-1, reduction="none")
        for name, label in chosen.labels.items()
    )
    scaled = scaled_inside(images, seen.faces, before.faces, chosen.factor2)
    pairs = zip(meaning(reference, scaled), meaning(reference, original), strict=True)
    change = sum(1 - F.cosine_similarity(ours, theirs) for ours, theirs in pairs)
    nearest = bank[F.cosine_similarity(seen.identity[:, None], bank[None], dim=2).argmax(1)]
    wished = torch.where(torch.tensor(chosen.kept)[:, None], before.identity, nearest).detach()
    strangeness = torch.where(has_face, 1 - F.cosine_similarity(seen.identity, wished), 0)
    return (fairness + IMAGE * torch.tensor(chosen.factor1) * change + FACE * strangeness).mean()


class Taken(NamedTuple):
    """One step, by fairjax or by PyTorch."""

    loss: float
    images: np.ndarray  # [n, h, w, 3]
    gradient: dict[str, Any]  # of the adapters


def by_fairjax(finetuning, state, batch):
    after, scalars, images = finetuning._program(state, over(finetuning._frozen, PHOTOS), batch)
    first_moment = optax.tree.get(after.optimizer, "mu")  # after a first step, 1 - b1 times the gradient
    gradient = jax.tree.map(lambda moment: np.asarray(moment) / (1 - 0.9), first_moment)
    return Taken(float(scalars["loss"]), np.asarray(images), gradient)


def by_torch(reference, locate, finetuning, state, batch, bank):
    """The step, and what was chosen in it."""
    rows = jnp.stack([jnp.zeros(len(PHOTOS), int), jnp.arange(len(PHOTOS))], axis=1)  # prompt, number of the image
    noise = nchw(np.array(finetuning.pipeline.noise(image_keys(jax.random.fold_in(batch.key, steps.NOISE), rows))))
    ids = np.concatenate([batch.empty, batch.ids])

    bundle = jax.tree.map(lambda leaf: torch.tensor(np.array(leaf), requires_grad=True), state.bundle)
    images = draw(reference, bundle, ids, noise)
    with torch.no_grad():
        original = draw(reference, {"text_encoder": {}, "unet": {}}, ids, noise)
        before = look(reference, locate, original)
    seen = look(reference, locate, images)
    chosen = choose(seen, before)
    loss = loss_of(reference, chosen, images, seen, original, before, bank)
    leaves, tree = jax.tree.flatten(bundle)
    gradient = [leaf.numpy() for leaf in torch.autograd.grad(loss, leaves)]
    return Taken(float(loss.detach()), nhwc(images.detach()), jax.tree.unflatten(tree, gradient)), chosen


@pytest.fixture(scope="module")
def both(models, tmp_path_factory):
    """One step by fairjax and by PyTorch, and what was chosen in it."""
    judges, photos = tmp_path_factory.mktemp("judges"), nchw(PHOTOS)
    detector, weights = detection.load()
    locate = lambda images: jax.device_get(detector.locate(weights, images))  # noqa: E731
    faces = locate(PHOTOS)
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
    }
    finetuning = finetuning_of(models, "exp4-gender-race-age-both", **changes)
    start, rng = finetuning.initial(), np.random.default_rng(3)

    def moved(path, leaf):
        return leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) if path[-1].key == "up" else leaf

    state = start._replace(bundle=jax.tree_util.tree_map_with_path(moved, start.bundle))
    batch, _ = finetuning.batch(0, state.bundle)
    reference, bank = read_reference(models / "sd", judges), torch.tensor(np.load(models / "bank.npy"))
    theirs, chosen = by_torch(reference, locate, finetuning, state, batch, bank)
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_over_photos(monkeypatch)
        return by_fairjax(finetuning, state, batch), theirs, chosen


def test_the_step_takes_every_branch(both):
    """Otherwise the comparison below would say little."""
    _, _, chosen = both
    assert set(chosen.factor1) == {0.2, 0.6, 1}, chosen
    assert set(chosen.factor2) >= {0.2, 0.3}
    assert set(chosen.kept) == {True, False}


def test_the_step_is_that_of_pytorch(both):
    """Images, loss and the adapters' gradient, of the text encoder and of the UNet."""
    ours, theirs, _ = both
    np.testing.assert_allclose(ours.images, theirs.images, atol=1e-4)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    for kind in ("text_encoder", "unet"):
        found, wanted = (
            np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(taken.gradient[kind])]) for taken in (ours, theirs)
        )
        assert np.linalg.norm(found - wanted) <= 2e-4 * np.linalg.norm(wanted) > 0, kind
