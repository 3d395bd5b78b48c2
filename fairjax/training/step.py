"""One training step, from top to bottom in the order of the paper (Shen et al., 2024, section 4).

    adapter -> chain -> images -> faces -> probabilities -> targets -> losses -> gradient -> adapter

It is written for one device over a named axis: each device makes its share of the images of all prompts. Two things
cross devices: class probabilities, because targets are a property of all images of a prompt, and gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fairjax import parallel
from fairjax.adapters.bundle import Bundle
from fairjax.config import LossSection, TrainingSection
from fairjax.diffusion.solvers import SolverTable
from fairjax.faces.judges import Judges, Verdict
from fairjax.fairness import losses
from fairjax.fairness.attributes import joint_cells
from fairjax.fairness.targets import targets
from fairjax.models.functional import in_chunks
from fairjax.pipeline import Pipeline, image_keys
from fairjax.training.state import State, update

NOISE, CHOICE, DRAWS = range(3)
"""What a step's randomness is for: starting latents, choice of solver steps, draws of the target distribution."""


CAUSES = (
    "the frozen model's pixels", "the pixels", "what classifiers say of the frozen model's", "what classifiers say",
    "the image semantics", "the face embedding", "the fairness loss", "the image loss", "the face loss",
    "the loss of other attributes",
)  # fmt: skip
"""Where a step may have numbers that are not finite, each a consequence of those before it."""


class Batch(NamedTuple):
    """What one step is asked for."""

    ids: jax.Array  # [p, length], token ids of the prompts, with soft tokens where there are some
    plain_ids: jax.Array  # [p, length], the same without them, for the frozen model
    empty: jax.Array  # [1, length], of the empty prompt, in which the paper has no soft tokens either
    distributions: jax.Array  # [p, cells], the wished distribution of each prompt; zeros where nobody is asked for
    num_steps: jax.Array  # [], solver steps
    key: jax.Array  # of this step


class Frozen(NamedTuple):
    """What training does not change, as arguments of the program, not constants in it."""

    pipeline: dict[str, Any]
    judges: dict[str, Any]
    table: SolverTable


class Pairs(NamedTuple):
    """This device's n images beside the frozen model's from the same noise, and what is known of both."""

    images: jax.Array  # [n, H, W, 3]
    original: jax.Array  # [n, H, W, 3], the frozen model's
    verdict: Verdict
    frozen_verdict: Verdict
    labels: list[jax.Array]  # by attribute [n], the class to become; -1 for none
    frozen_labels: list[jax.Array]  # by attribute [n], the class of the frozen model's image; -1 without a face


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The static part of a step: networks and choices."""

    pipeline: Pipeline
    judges: Judges
    attributes: tuple[str, ...]  # those of the target, in its order
    cost_weights: tuple[np.ndarray | None, ...]  # of each of them, as `joint_cost` takes them
    training: TrainingSection
    loss: LossSection

    def __call__(self, state: State, frozen: Frozen, batch: Batch) -> tuple[State, dict[str, jax.Array], jax.Array]:
        """Returns the new state, scalars to log, and this device's images [n, H, W, 3]."""
        sample = self._sampler(frozen, batch)
        original = sample({}, batch.plain_ids)
        images, pull_back = jax.vjp(lambda bundle: sample(bundle, batch.ids), state.bundle)
        (_, scalars), cotangent = jax.value_and_grad(self._loss, has_aux=True)(images, original, frozen, batch)
        (gradient,) = pull_back(cotangent)
        gradient, scalars = parallel.mean((gradient, scalars))
        scalars["gradient_norm"] = optax.tree.norm(gradient)
        return update(state, scalars["loss"], gradient, self.training), scalars, images

    def unsound(self, state: State, frozen: Frozen, batch: Batch) -> jax.Array:
        """Which of CAUSES are not finite in a step, for each of this device's images: bool [n, causes]."""
        sample = self._sampler(frozen, batch)
        original, images = sample({}, batch.plain_ids), sample(state.bundle, batch.ids)
        each, (verdict, frozen_verdict), _ = self._losses(images, original, frozen, batch)
        identity = self._in_chunks(partial(self.judges.identity, frozen.judges), images, verdict.faces)
        logits = [jnp.concatenate(list(seen.logits.values()), axis=1) for seen in (frozen_verdict, verdict)]
        semantics = jnp.concatenate(self._in_chunks(partial(self.judges.meaning, frozen.judges), images), axis=1)
        faces = jnp.where(verdict.has_face[:, None], identity, 0)
        checked = (original, images, *logits, semantics, faces, *each.values())  # in the order of CAUSES
        return jnp.stack([~jnp.isfinite(value.reshape(len(value), -1)).all(axis=1) for value in checked], axis=1)

    def _sampler(self, frozen: Frozen, batch: Batch) -> Callable[[Bundle, jax.Array], jax.Array]:
        """(adapters, token ids) -> this device's images, always from the same noise."""
        numbers = parallel.local_images(batch.ids.shape[0] * self.training.images_per_prompt)
        rows = jnp.stack(jnp.divmod(numbers, self.training.images_per_prompt), axis=1)  # prompt, number of the image
        noise = self.pipeline.noise(image_keys(jax.random.fold_in(batch.key, NOISE), rows))
        choice = image_keys(jax.random.fold_in(batch.key, CHOICE), rows)
        t = self.training

        def sample(bundle: Bundle, ids: jax.Array) -> jax.Array:
            return self.pipeline.sample(
                frozen.pipeline, bundle, ids, batch.empty, rows[:, 0], noise, frozen.table, batch.num_steps,
                t.guidance_scale, gradient=t.gradient, grad_steps=t.grad_steps, microbatch=t.microbatch,
                image_keys=choice if t.grad_steps else None,
            )  # fmt: skip

        return sample

    def _loss(self, images, original, frozen, batch):
        """The mean loss of this device's images, and what it is made of.

        It is not finite where classifiers say nothing finite: those images would count as ones without a face.
        """
        each, verdicts, (everyone, labels, without) = self._losses(images, original, frozen, batch)
        asked = self._asked_for_somebody(batch)
        weights = {"fairness": 1.0} | {name: getattr(self.loss, name) for name in ("image", "face", "other_attributes")}
        total = jnp.mean(sum(weights[name] * value for name, value in each.items()))
        sound = [jnp.isfinite(logits).all() for verdict in verdicts for logits in verdict.logits.values()]
        scalars = {
            "loss": jnp.where(jnp.stack(sound).all(), total, jnp.nan),
            **{f"loss/{name}": value.mean() for name, value in each.items()},
            "faces": jnp.where(asked, verdicts[0].has_face, True).mean(),
            "targeted": jnp.stack([label >= 0 for label in labels]).mean(),
            "prompts_without_target": (without & asked).mean() * len(batch.ids),  # each prompt has as many images
        }
        return total, scalars | self._shown(*everyone, batch.distributions)

    def _losses(self, images, original, frozen, batch):
        """The losses of each of this device's images, by name; what is seen of them, and whom they are to become."""
        asked = self._asked_for_somebody(batch)
        verdict, frozen_verdict = (
            self._in_chunks(partial(self.judges.verdict, frozen.judges), shown).of_those(asked)
            for shown in (images, original)
        )
        everyone = self._everyone(verdict, batch)
        *labels, without = self._own_targets(*everyone, batch)
        frozen_probs = [frozen_verdict.probs[name] for name in self.attributes]
        frozen_labels = [jnp.where(frozen_verdict.has_face, p.argmax(1), -1) for p in frozen_probs]
        pairs = Pairs(images, original, verdict, frozen_verdict, labels, frozen_labels)
        fairness = sum(
            losses.alignment_loss(verdict.logits[name], label)
            for name, label in zip(self.attributes, labels, strict=True)
        )
        factors = losses.image_factors(
            labels, frozen_labels, verdict.has_face, self._factors(self.loss.factor1), self.loss.no_face
        )
        kept = jnp.where(asked, factors, 1)  # nothing at all should change where nobody is asked for
        image = kept * self._change(pairs, frozen)
        each = {
            "fairness": fairness, "image": image, "face": self._face_loss(pairs, frozen),
            "other_attributes": self._drift(pairs),
        }  # fmt: skip
        return each, (verdict, frozen_verdict), (everyone, labels, without)

    def _asked_for_somebody(self, batch: Batch) -> jax.Array:
        """Of this device's images [n]: whether their prompt asks for somebody."""
        numbers = parallel.local_images(batch.ids.shape[0] * self.training.images_per_prompt)
        return batch.distributions.any(axis=1)[numbers // self.training.images_per_prompt]

    def _everyone(self, verdict: Verdict, batch: Batch) -> tuple[list[jax.Array], jax.Array]:
        """Class probabilities by attribute [p, n, classes] and presence of a face [p, n], of all devices' images."""
        columns = [lax.stop_gradient(verdict.probs[name]) for name in self.attributes]
        columns.append(verdict.has_face[:, None].astype(columns[0].dtype))
        rows = parallel.gather(jnp.concatenate(columns, axis=1))
        *probs, has_face = jnp.split(
            rows.reshape(len(batch.ids), -1, rows.shape[1]), np.cumsum([c.shape[1] for c in columns[:-1]]), axis=2
        )
        return probs, has_face[..., 0] > 0

    def _own_targets(self, probs: list[jax.Array], has_face: jax.Array, batch: Batch) -> list[jax.Array]:
        """Of this device's images: the class to become, per attribute [n], and whether their prompt has no target.

        Targets are those of all images of a prompt, but only the prompts that this device has images of are solved.
        """
        keys = jax.random.split(jax.random.fold_in(batch.key, DRAWS), len(batch.ids))
        first, count, place = parallel.own_groups(*has_face.shape)
        near = [lax.dynamic_slice_in_dim(x, first, count) for x in (*probs, batch.distributions, has_face, keys)]
        labels = jnp.stack(self._targets(*near))  # [attributes, count, images of a prompt]
        without = jnp.broadcast_to(jnp.all(labels < 0, axis=(0, 2))[:, None], labels.shape[1:])
        share = has_face.size // lax.axis_size(parallel.AXIS)
        return [lax.dynamic_slice_in_dim(rows.reshape(-1), place, share) for rows in (*labels, without)]

    def _targets(self, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        """The class that every image of p prompts should become, per attribute [p, n]; -1 for none.

        Args:
            arguments: by attribute probabilities [p, n, classes]; distributions [p, cells], presence of a face [p, n],
                keys [p].
        """
        how = {"threshold": self.loss.threshold, "num_sets": self.loss.num_sets, "cost_weights": self.cost_weights}
        return jax.vmap(lambda *args: targets(args[:-3], *args[-3:], **how).labels)(*arguments)

    def _change(self, pairs: Pairs, frozen: Frozen) -> jax.Array:
        """How far the image means something else; what must change is felt less inside the face (appendix).

        As in the authors' scripts that is the square which classifiers see, in both images: hair and ears with it.
        """
        images, original, verdict, frozen_verdict, labels, frozen_labels = pairs
        inside = losses.image_factors(labels, frozen_labels, verdict.has_face, self._factors(self.loss.factor2), 1.0)
        both = verdict.has_face & frozen_verdict.has_face
        squares = (self.judges.judge.squares(each.faces) for each in (verdict, frozen_verdict))
        overlap = losses.box_overlap(*squares)
        boxes = jnp.where(both[:, None], overlap, 0)
        scaled = losses.scale_gradient_in_box(images, boxes, inside)
        meaning = partial(self.judges.meaning, frozen.judges)
        ours, theirs = (self._in_chunks(meaning, shown) for shown in (scaled, original))
        return sum(losses.cosine_distance(a, b) for a, b in zip(ours, theirs, strict=True))

    def _face_loss(self, pairs: Pairs, frozen: Frozen) -> jax.Array:
        """Keeps faces those of somebody: the frozen image's own where it may stay, else a near one of the bank."""
        images, original, verdict, frozen_verdict, labels, frozen_labels = pairs
        bank = frozen.judges["bank"]
        identity = partial(self.judges.identity, frozen.judges)
        embeddings = self._in_chunks(identity, images, verdict.faces)
        frozen_embeddings = self._in_chunks(identity, original, frozen_verdict.faces)
        known = self.loss.bank_face == "target" and all(name in bank for name in self.attributes)
        wished = losses.realism_target(
            embeddings, frozen_embeddings, bank["embeddings"],
            [bank[name] for name in self.attributes] if known else None,
            labels, frozen_labels, [frozen_verdict.probs[name] for name in self.attributes], self.loss.confidence,
        )  # fmt: skip
        pulled = verdict.has_face
        if not self.loss.face_untargeted:
            pulled &= jnp.any(jnp.stack(labels) >= 0, axis=0)
        return jnp.where(pulled, losses.cosine_distance(embeddings, wished), 0)

    def _drift(self, pairs: Pairs) -> jax.Array:
        """How far the faces show something else of the attributes that are not in the target."""
        ours, theirs = pairs.verdict, pairs.frozen_verdict
        both = ours.has_face & theirs.has_face
        drift = jnp.zeros(both.shape)
        for name in ours.logits:
            if name not in self.attributes:
                drift += losses.divergence(ours.logits[name], theirs.logits[name], both)
        return drift

    def _in_chunks(self, network: Callable[..., Any], *shown: Any) -> Any:
        """What a network says of images, `microbatch` of them at a time."""
        return in_chunks(network, self.training.microbatch, *shown)

    def _factors(self, by_attribute: dict[str, float]) -> list[float]:
        return [by_attribute.get(name, self.loss.default_factor) for name in self.attributes]

    def _shown(
        self, probs: list[jax.Array], has_face: jax.Array, distributions: jax.Array
    ) -> dict[str, jax.Array]:  # fmt: skip
        """What the images of this step show, of each attribute and of all jointly; means over prompts.

        The bias, and the distance (total variation) from what is wished. A prompt without a face is left out, of
        distances one that asks for nobody, too; where all are, it is NaN.
        """
        sizes = [prob.shape[-1] for prob in probs]
        cells = distributions.reshape(-1, *sizes)
        shown, wished = {}, {}
        for place, (name, prob) in enumerate(zip(self.attributes, probs, strict=True)):
            shown[name] = jax.nn.one_hot(prob.argmax(-1), sizes[place]) * has_face[..., None]
            wished[name] = cells.sum([axis + 1 for axis in range(len(sizes)) if axis != place])
        if len(sizes) > 1:
            both = " x ".join(self.attributes)
            shown[both], wished[both] = jax.vmap(joint_cells)(list(shown.values())), distributions
        asked, found = distributions.any(axis=1), {}
        for name, one in shown.items():
            counts = one.sum(1)
            share = counts / counts.sum(1, keepdims=True)
            first, second = np.triu_indices(share.shape[-1], k=1)
            found[f"bias/{name}"] = jnp.nanmean(jnp.abs(share[:, first] - share[:, second]).mean(1))
            distance = jnp.abs(share - wished[name]).sum(1) / 2
            found[f"distance/{name}"] = jnp.nanmean(jnp.where(asked, distance, jnp.nan))
        return found


def diagnosis(step: Step, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """`Step.unsound` over every device of a mesh, of all images: [p * n, causes]."""
    return parallel.spread(step.unsound, mesh, (parallel.REPLICATED,) * 3, parallel.SPREAD)


def program(step: Step, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """The step over every device of a mesh: (state, frozen, batch) -> (state, scalars, images [p * n, H, W, 3])."""

    def training_step(state: State, frozen: Frozen, batch: Batch) -> tuple[State, dict[str, jax.Array], jax.Array]:
        return step(state, frozen, batch)  # profiles and what was compiled have the name

    replicated = parallel.REPLICATED
    return parallel.spread(training_step, mesh, (replicated,) * 3, (replicated, replicated, parallel.SPREAD))
