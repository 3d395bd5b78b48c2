"""The original training step in PyTorch and diffusers: what fairjax is compared with, and measured against.

Written from the paper (Shen et al., 2024, section 4 and appendix), to be fast. It samples the images of a prompt three
times: without gradients, to know whom each is to become; from the frozen model; and once more with gradients, a few
images at a time, where each call of the UNet is checkpointed, its image input detached, and a hook scales the gradient
of the noise prediction. Adapters are merged into the weights once a step, and what is frozen is kept in the type of the
computation, channels last; attention is PyTorch's own.

From fairjax it takes the configuration and the folders, and where faces are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import numpy as np
import ot
import scipy.stats
import torch
import transformers
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.torch_networks import TorchMobileNetV3, TorchSFNet, face_crops, face_squares, torch_align
from fairjax.convert.rules import to_torch
from fairjax.faces import reading
from fairjax.faces.judges import PRESENCE, RECOGNITION
from fairjax.hub import find

Tensor = torch.Tensor


class Faces(NamedTuple):
    """Where the faces of n images are, as numpy arrays: fairjax's `Faces`."""

    boxes: np.ndarray
    landmarks: np.ndarray
    has_face: np.ndarray


class Seen(NamedTuple):
    """What is seen of n images; nothing of use where there is no face."""

    faces: Faces
    logits: dict[str, Tensor]  # [n, classes]
    identity: Tensor  # [n, d]

    def probs(self, name: str) -> Tensor:
        return self.logits[name].float().softmax(1).detach()

    def part(self, rows: slice) -> Seen:
        faces = Faces(*(values[rows] for values in self.faces))
        return Seen(faces, {name: logits[rows] for name, logits in self.logits.items()}, self.identity[rows])


class Choice(NamedTuple):
    """What was chosen for each image [n]."""

    labels: dict[str, np.ndarray]  # the class to become, -1 for none
    factor1: np.ndarray
    factor2: np.ndarray
    kept: np.ndarray  # whether the frozen image's face is the one to keep

    def part(self, rows: slice) -> Choice:
        others = (values[rows] for values in self[1:])
        return Choice({name: labels[rows] for name, labels in self.labels.items()}, *others)


class Taken(NamedTuple):
    loss: float
    images: Tensor  # [n, 3, h, w]
    gradient: dict[str, Any]  # of the adapters, as they are nested
    chosen: Choice


@dataclasses.dataclass
class TorchStep:
    """One step for the images of one prompt."""

    config: Any  # fairjax's Experiment
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler: Any
    classifiers: list[tuple[Any, dict[str, slice]]]  # each with the parts of its logits
    semantics: list[tuple[Any, Callable[[Tensor], Tensor]]]  # each with what prepares images for it
    face: Any
    face_side: int
    bank: dict[str, Tensor]
    attributes: tuple[str, ...]
    locate: Callable[[Tensor], Faces]
    assign: Callable[[dict[str, Tensor], np.ndarray], dict[str, np.ndarray]]  # probabilities, faces -> labels
    decoded: Callable[[Tensor], Tensor] = lambda images: images  # what becomes of the decoder's images

    @property
    def device(self) -> torch.device:
        return self.bank["embeddings"].device

    def __call__(
        self, bundle: dict[str, Any], ids: np.ndarray, noise: Tensor, num_steps: int, minibatch: int,
        sampled: int | None = None,
    ) -> Taken:  # fmt: skip
        """One step from token ids [2, length] of the empty prompt and the prompt, and noise [n, c, h, w].

        Soft tokens are put into the prompt here, which must leave room for them.

        Args:
            minibatch: images that are differentiated at a time.
            sampled: those that are made at a time without a gradient, which takes far less memory; None is all.
        """
        leaves, restore = _flatten(bundle)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        weights = self._merged(restore(leaves))
        states = self._encode(weights["text_encoder"], self._prefixed(ids, bundle))
        # what the minibatches add to, to be pulled back to the adapters once
        held = {name: weight.detach().requires_grad_() for name, weight in weights["unet"].items()}
        context = states.detach().requires_grad_(states.requires_grad)
        rows = _parts(len(noise), minibatch)
        with torch.no_grad():
            seen = self._look_at_all(held, context, noise, num_steps, sampled)[0]
            before, original = self._look_at_all({}, self._encode({}, ids), noise, num_steps, sampled)
        chosen = self.choose(seen, before)
        loss, images = 0.0, []
        for part in rows:
            drawn = self._draw(held, context, noise[part], num_steps)
            share = self.loss(chosen.part(part), drawn, self.look(drawn), original[part], before.part(part))
            share = share.sum() / len(noise)
            share.backward()
            loss, images = loss + share.detach(), [*images, drawn.detach()]
        outputs = [states] if states.requires_grad else []
        pulled = [context.grad] if states.requires_grad else []
        for name, leaf in held.items():
            outputs, pulled = [*outputs, weights["unet"][name]], [*pulled, leaf.grad]
        gradient = torch.autograd.grad(outputs, leaves, pulled)
        return Taken(float(loss), torch.cat(images), restore(list(gradient)), chosen)

    def _merged(self, bundle: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
        """The weights that the adapters change, by network and name, in the type of the network."""
        changed: dict[str, dict[str, Tensor]] = {"text_encoder": {}, "unet": {}}
        for kind in changed.keys() & bundle.keys():
            weights = dict(getattr(self, kind).named_parameters())
            for module, factors in bundle[kind].items():
                name = f"{module}.weight"
                if name not in weights:  # newer transformers drop what every published file has
                    name = name.removeprefix("text_model.")
                change = (factors["down"] @ factors["up"]).T.reshape(weights[name].shape)
                changed[kind][name] = (weights[name] + change).to(weights[name].dtype)
        if "soft_prompt" in bundle:
            name, words = self._words()
            changed["text_encoder"][name] = torch.cat([words, bundle["soft_prompt"]["embedding"].to(words.dtype)])
        return changed

    def _words(self) -> tuple[str, Tensor]:
        """The text encoder's token embedding [vocabulary, width], and its name."""
        weights = self.text_encoder.named_parameters()
        return next((name, weight) for name, weight in weights if name.endswith("token_embedding.weight"))

    def _prefixed(self, ids: np.ndarray, bundle: dict[str, Any]) -> np.ndarray:
        """The soft tokens' ids, which follow the vocabulary's, between the prompt's start and its text."""
        if "soft_prompt" not in bundle:
            return ids
        empty, prompt = ids
        soft = len(self._words()[1]) + np.arange(len(bundle["soft_prompt"]["embedding"]))
        return np.stack([empty, np.concatenate([prompt[:1], soft, prompt[1:]])[: len(prompt)]])

    def _encode(self, weights: dict[str, Tensor], ids: np.ndarray) -> Tensor:
        arguments = (torch.tensor(ids, dtype=torch.long, device=self.device),)
        return functional_call(self.text_encoder, weights, arguments).last_hidden_state

    def _look_at_all(self, weights, states, noise, num_steps, sampled) -> tuple[Seen, Tensor]:
        parts = _parts(len(noise), sampled or len(noise))
        images = torch.cat([self._draw(weights, states, noise[part], num_steps) for part in parts])
        return self.look(images), images

    def _draw(self, weights: dict[str, Tensor], states: Tensor, noise: Tensor, num_steps: int) -> Tensor:
        """Images [n, 3, h, w]; differentiable in the weights and the states, by adjusted direct finetuning."""
        scheduler, scale = self.scheduler, self.config.training.guidance_scale
        scheduler.set_timesteps(num_steps)
        alphas = scheduler.alphas_cumprod.double()
        alpha, abar = scheduler.alphas.double()[scheduler.timesteps], alphas[scheduler.timesteps]
        influence = (1 - alpha) / ((1 - abar).sqrt() * abar.sqrt())
        scales = ((1 / influence) / (1 / influence).log().mean().exp()).tolist()
        n, dtype = len(noise), self.unet.dtype
        context = (states if scale > 1 else states[1:]).to(dtype).repeat_interleave(n, 0)

        def predict(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
            both = torch.cat([latents] * (2 if scale > 1 else 1)).to(dtype)
            both = both.contiguous(memory_format=torch.channels_last)
            output = functional_call(self.unet, weights, (both, timestep, context), {"return_dict": False})[0].float()
            if scale <= 1:
                return output
            plain, prompted = output.chunk(2)
            return plain + scale * (prompted - plain)

        latents = noise
        for timestep, factor in zip(scheduler.timesteps, scales, strict=True):
            arguments = (latents.detach(), timestep.to(self.device), context)
            if torch.is_grad_enabled():
                prediction = checkpoint(predict, *arguments, use_reentrant=False)
                prediction.register_hook(lambda gradient, factor=factor: gradient * factor)
            else:
                prediction = predict(*arguments)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        images = self.vae.decode(scaled.contiguous(memory_format=torch.channels_last), return_dict=False)[0]
        return self.decoded(images.float().clamp(-1, 1)).clamp(-1, 1)

    def look(self, images: Tensor) -> Seen:
        faces = self.locate(images.detach())
        logits: dict[str, Tensor] = {}
        for network, parts in self.classifiers:
            if (margin := reading.margin(self.config.judges)) is None:
                told, there = network(images), None
            else:
                there = torch.tensor(np.flatnonzero(faces.has_face), device=self.device)
                told = network(torch.cat(face_crops(images, faces, margin)))
            for name, part in parts.items():
                values = told[:, part]
                if there is not None:
                    values = torch.zeros(len(images), values.shape[1], device=self.device).index_copy(0, there, values)
                logits[name] = values
        if PRESENCE in logits:
            shown = logits.pop(PRESENCE).argmax(1).eq(1).cpu().numpy()
            faces = faces._replace(has_face=faces.has_face & shown)
        return Seen(faces, logits, self._identity(images, faces))

    def _identity(self, images: Tensor, faces: Faces) -> Tensor:
        """Embeddings [n, d] of faces, of length 1: of the sum over the face and its mirror image."""
        there = torch.tensor(np.flatnonzero(faces.has_face), device=self.device)
        width = self.bank["embeddings"].shape[1]
        if isinstance(self.face, TorchSFNet):
            chips = torch_align(images[there], faces.landmarks[faces.has_face], self.face_side)
        else:
            boxes = np.round(faces.boxes).astype(int)
            cut = [images[i : i + 1, :, boxes[i, 1] : boxes[i, 3], boxes[i, 0] : boxes[i, 2]] for i in there.tolist()]
            chips = F.interpolate(torch.cat(cut), (self.face_side,) * 2, mode="bilinear", antialias=True)
        both = F.normalize(sum(self.face(x) for x in (chips, chips.flip(3))))
        return torch.zeros(len(images), width, device=self.device).index_copy(0, there, both)

    def choose(self, seen: Seen, before: Seen) -> Choice:
        """Targets, and how much of each image may change."""
        section, n, has_face = self.config.loss, len(seen.identity), seen.faces.has_face
        labels = self.assign({name: seen.probs(name) for name in self.attributes}, has_face)
        factor1, factor2, kept = np.ones(n), np.ones(n), np.ones(n, bool)
        for name, label in labels.items():
            probs = before.probs(name).cpu().numpy()
            same = (label >= 0) & (label == np.where(before.faces.has_face, probs.argmax(1), -1))
            one = section.factor1.get(name, section.default_factor)
            two = section.factor2.get(name, section.default_factor)
            factor1 = np.where(same, factor1, np.minimum(factor1, one))
            factor2 = np.where(same, factor2, np.minimum(factor2, two))
            kept &= same & (probs.max(1) >= section.confidence)
        factor1 = np.where(has_face, factor1, section.no_face)
        return Choice(labels, factor1, np.where(has_face, factor2, 1.0), kept)

    def loss(self, chosen: Choice, images: Tensor, seen: Seen, original: Tensor, before: Seen) -> Tensor:
        """The loss of each image [n] (section 4.1 and the appendix of the paper)."""
        section, pulled = self.config.loss, seen.faces.has_face
        if not section.face_untargeted:
            pulled = pulled & np.any([label >= 0 for label in chosen.labels.values()], axis=0)
        fairness = sum(
            F.cross_entropy(seen.logits[name], self._on(label).long(), ignore_index=-1, reduction="none")
            for name, label in chosen.labels.items()
        )
        margin = reading.margin(self.config.judges)
        boxes = [faces.boxes if margin is None else face_squares(faces, margin) for faces in (seen.faces, before.faces)]
        both = seen.faces.has_face & before.faces.has_face
        scaled = _scaled_inside(images, *boxes, both, chosen.factor2)
        pairs = zip(self._meaning(scaled), self._meaning(original), strict=True)
        change = sum(1 - F.cosine_similarity(ours.float(), theirs.float()) for ours, theirs in pairs)
        wished = self._wished(chosen, seen, before)
        strangeness = torch.where(self._on(pulled), 1 - F.cosine_similarity(seen.identity, wished), 0)
        return (
            fairness
            + section.image * self._on(chosen.factor1) * change
            + section.face * strangeness
            + section.other_attributes * self._drift(seen, before, both)
        )

    def _drift(self, seen: Seen, before: Seen, both: np.ndarray) -> Tensor:
        """How far the faces show something else of the attributes that are not in the target."""
        drift = torch.zeros(len(both), device=self.device)
        for name in seen.logits:
            if name in self.attributes or name == RECOGNITION:
                continue
            ours, theirs = (one.logits[name].float().log_softmax(1) for one in (seen, before))
            drift += F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
        return torch.where(self._on(both), drift, 0)

    def _meaning(self, images: Tensor) -> list[Tensor]:
        return [network(prepare(images).to(network.dtype)) for network, prepare in self.semantics]

    def _wished(self, chosen: Choice, seen: Seen, before: Seen) -> Tensor:
        """Whose face each is to be: the frozen image's, or of the bank the one of the wished class most like it."""
        bank, like = self.bank["embeddings"], seen.identity.detach()
        penalty = torch.zeros(len(like), len(bank), device=self.device)
        if self.config.loss.bank_face == "target" and all(name in self.bank for name in self.attributes):
            targeted = np.all([label >= 0 for label in chosen.labels.values()], axis=0) & before.faces.has_face
            like = torch.where(self._on(targeted)[:, None], before.identity, like)
            for name, label in chosen.labels.items():
                wrong = (self._on(label)[:, None] >= 0) & (self._on(label)[:, None] != self.bank[name][None])
                penalty += 4.0 * wrong
        near = F.normalize(like) @ F.normalize(bank).T - penalty
        return torch.where(self._on(chosen.kept)[:, None], before.identity, bank[near.argmax(1)]).detach()

    def _on(self, values: np.ndarray) -> Tensor:
        values = torch.as_tensor(values, device=self.device)
        return values.float() if values.dtype == torch.float64 else values


def _scaled_inside(
    images: Tensor, boxes: np.ndarray, before: np.ndarray, both: np.ndarray, factors: np.ndarray
) -> Tensor:
    """The same images, whose gradient is multiplied by `factors` [n] where both have a face, inside of both boxes."""
    scale = np.ones(images.shape, np.float32)
    row, column = (np.arange(side) + 0.5 for side in images.shape[2:])
    for i in np.flatnonzero(both):
        (left, top, right, bottom), other = boxes[i], before[i]
        rows = (row >= max(top, other[1])) & (row < min(bottom, other[3]))
        columns = (column >= max(left, other[0])) & (column < min(right, other[2]))
        scale[i, :, rows[:, None] & columns] = factors[i]
    if not images.requires_grad:
        return images
    copy, factor = images * 1, torch.tensor(scale, device=images.device)
    copy.register_hook(lambda gradient: gradient * factor)
    return copy


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _flatten(tree: dict[str, Any]) -> tuple[list[Tensor], Callable[[list[Tensor]], dict[str, Any]]]:
    """The tensors of a nested dict, and what puts as many back in their places."""
    if isinstance(tree, Tensor):
        return [tree], lambda leaves: leaves[0]
    parts = {name: _flatten(value) for name, value in tree.items()}

    def restore(leaves: list[Tensor]) -> dict[str, Any]:
        whole, rest = {}, list(leaves)
        for name, (own, put_back) in parts.items():
            whole[name], rest = put_back(rest[: len(own)]), rest[len(own) :]
        return whole

    return [leaf for own, _ in parts.values() for leaf in own], restore


class Sets(NamedTuple):
    """Sets of labels that faces may be given: how many of them have each class, and how likely that is."""

    counts: np.ndarray  # [s, cells]
    likely: np.ndarray  # [s], of sum 1


def drawn(distribution: np.ndarray, num_sets: int, seed: int = 0) -> Callable[[int], Sets]:
    """Sets for so many faces as the original has them: drawn, each as likely as another."""

    def sets(faces: int) -> Sets:
        counts = np.random.default_rng(seed).multinomial(faces, distribution, size=num_sets)
        return Sets(counts, np.full(num_sets, 1 / num_sets))

    return sets


def every(distribution: np.ndarray) -> Callable[[int], Sets]:
    """All sets for so many faces: what drawing comes to in the end. For a few faces only."""

    def sets(faces: int) -> Sets:
        labels = itertools.combinations_with_replacement(range(len(distribution)), faces)
        counts = np.stack([np.bincount(np.array(one, int), minlength=len(distribution)) for one in labels])
        return Sets(counts, scipy.stats.multinomial.pmf(counts, faces, distribution))

    return sets


def by_emd(sets: Callable[[int], Sets], sizes: Mapping[str, int], threshold: float, cost_weights: Mapping[str, Any]):
    """Targets as the original has them: a loop of exact transports, one for each set of labels.

    Args:
        sizes: by attribute, how many classes it has.
        cost_weights: by attribute, where not all differences count alike: rows, of which row j says how much each class
            counts on the way to class j.

    Returns:
        What `TorchStep.assign` is.
    """

    def assign(probs: dict[str, Tensor], has_face: np.ndarray) -> dict[str, np.ndarray]:
        squared = np.zeros((len(has_face), 1))
        for name, size in sizes.items():
            p, weights = probs[name].cpu().double().numpy(), np.asarray(cost_weights.get(name, 1.0))
            to_corners = np.square((p[:, None] - np.eye(size)) * weights).sum(-1)  # [n, classes]
            squared = (squared[:, :, None] + to_corners[:, None]).reshape(len(p), -1)
        cost = np.sqrt(squared)[has_face]
        plans = np.zeros_like(cost)
        for counts, likely in zip(*sets(len(cost)), strict=True) if len(cost) else ():
            plans += likely * ot.emd(np.ones(len(cost)), counts.astype(np.float64), cost)
        labels, q = {}, plans.reshape(len(cost), *sizes.values())
        for axis, name in enumerate(sizes):
            own = q.sum(axis=tuple(other + 1 for other in range(len(sizes)) if other != axis))
            sure = 1 - own.max(1) <= threshold if len(own) else np.zeros(0, bool)
            labels[name] = np.full(len(has_face), -1)
            labels[name][has_face] = np.where(sure, own.argmax(1), -1)
        return labels

    return assign


def read(finetuning: Any, locate: Callable[[Tensor], Faces], assign: Any, device: str, dtype: torch.dtype) -> TorchStep:
    """The networks of a fairjax `Finetuning` in PyTorch, in inference mode and without gradients of their own."""
    config, folder, judges = finetuning.config, find(finetuning.config.model), finetuning.judges
    frozen: list[Any] = []

    def placed(network: torch.nn.Module, dtype: torch.dtype = torch.float32) -> Any:
        frozen.append(network)
        return network.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)

    def filled(network: torch.nn.Module, params: Any) -> Any:
        tensors = {name: torch.tensor(np.asarray(value)) for name, value in to_torch(params).items()}
        network.load_state_dict(tensors, strict=False)  # but for counters of batches
        return placed(network)

    classifiers = [
        (filled(_mobilenet(classifier.config), params), classifier.parts())
        for classifier, params in zip(judges.judge.classifiers, judges.params["judge"]["classifiers"], strict=True)
    ]
    semantics = [_semantic(config, number, placed, dtype, part) for number, part in enumerate(judges.semantics)]
    face = TorchSFNet((1, 2, 4, 1), (64, 128, 256, 512), 512, 112) if judges.face.aligned else None
    if face is None:
        from fairjax.faces import classifier as classifiers_of

        face = _mobilenet(classifiers_of.load(reading.path(config.judges.face, "face"))[0].config)
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    return TorchStep(
        config=config,
        text_encoder=placed(transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")),
        unet=placed(diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"), dtype),
        vae=placed(diffusers.AutoencoderKL.from_pretrained(folder / "vae"), dtype),
        scheduler=scheduler,
        classifiers=classifiers,
        semantics=semantics,
        face=filled(face, judges.params["face"]),
        face_side=judges.face.image_size,
        bank={name: torch.tensor(np.asarray(value), device=device) for name, value in judges.params["bank"].items()},
        attributes=finetuning.target.attributes,
        locate=locate,
        assign=assign,
    )


def _mobilenet(config: Any) -> TorchMobileNetV3:
    kinds = {True: "HS", False: "RE"}
    table = [(r.kernel, r.expanded, r.outputs, r.squeeze, kinds[r.hardswish], r.stride) for r in config.rows]
    return TorchMobileNetV3(config.num_classes, table, config.last_channels, config.stem)


def _semantic(config: Any, number: int, placed: Any, dtype: torch.dtype, part: Any):
    """A network of image semantics and what prepares images [n, 3, h, h] in [-1, 1] for it."""
    name = config.judges.semantics[number]
    folder = reading.path(name, "semantics")
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    if kind == "dinov2":
        network = placed(transformers.Dinov2Model.from_pretrained(folder), dtype)
        embed = lambda pixels: network(pixels).pooler_output  # noqa: E731
    else:
        network = placed(transformers.CLIPVisionModelWithProjection.from_pretrained(folder), dtype)
        embed = lambda pixels: network(pixels).image_embeds  # noqa: E731
    embed.dtype = dtype
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in part.statistics)

    def prepare(images: Tensor) -> Tensor:
        if images.shape[2] != part.image_size:
            images = F.interpolate(images, (part.image_size,) * 2, mode="bilinear", antialias=True)
        return ((images + 1) / 2 - mean.to(images)) / std.to(images)

    return embed, prepare
