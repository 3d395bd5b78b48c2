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
from fairjax.fairness.targets import targets
from fairjax.models.functional import in_chunks
from fairjax.pipeline import Pipeline, image_keys
from fairjax.training.preservation import Pairs, Preservation
from fairjax.training.shown import shown
from fairjax.training.state import State, update

NOISE, CHOICE, DRAWS = range(3)
"""What a step's randomness is for: starting latents, choice of solver steps, draws of the target distribution."""


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
        sample = self.sampler(frozen, batch)
        original = sample({}, batch.plain_ids)
        images, pull_back = jax.vjp(lambda bundle: sample(bundle, batch.ids), state.bundle)
        (_, scalars), cotangent = jax.value_and_grad(self.total_loss, has_aux=True)(images, original, frozen, batch)
        (gradient,) = pull_back(cotangent)
        gradient, scalars = parallel.mean((gradient, scalars))
        scalars["gradient_norm"] = optax.tree.norm(gradient)
        return update(state, scalars["loss"], gradient, self.training), scalars, images

    def sampler(self, frozen: Frozen, batch: Batch) -> Callable[[Bundle, jax.Array], jax.Array]:
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

    def total_loss(self, images: jax.Array, original: jax.Array, frozen: Frozen, batch: Batch):
        """The mean loss of this device's images, and what it is made of.

        It is not finite where classifiers say nothing finite: those images would count as ones without a face.
        """
        each, verdicts, (everyone, labels, without) = self.losses_of(images, original, frozen, batch)
        asked = self._asked_for_somebody(batch)
        weights = {name: 1.0 if name == "fairness" else getattr(self.loss, name) for name in each}
        total = jnp.mean(sum(weights[name] * value for name, value in each.items()))
        sound = [jnp.isfinite(logits).all() for verdict in verdicts for logits in verdict.logits.values()]
        scalars = {
            "loss": jnp.where(jnp.stack(sound).all(), total, jnp.nan),
            **{f"loss/{name}": value.mean() for name, value in each.items()},
            "faces": jnp.where(asked, verdicts[0].has_face, True).mean(),
            "targeted": jnp.stack([label >= 0 for label in labels]).mean(),
            "prompts_without_target": (without & asked).mean() * len(batch.ids),  # each prompt has as many images
        }
        return total, scalars | shown(self.attributes, *everyone, batch.distributions)

    def losses_of(self, images: jax.Array, original: jax.Array, frozen: Frozen, batch: Batch):
        """The losses of each of this device's images, by name; what is seen of them, and whom they are to become."""
        asked = self._asked_for_somebody(batch)
        verdict, frozen_verdict = (
            in_chunks(partial(self.judges.verdict, frozen.judges), self.training.microbatch, seen).of_those(asked)
            for seen in (images, original)
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
        keep = Preservation(self.judges, self.attributes, self.loss, self.training.microbatch)
        each = {"fairness": fairness} | keep(pairs, asked, frozen.judges)
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


def program(step: Step, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """The step over every device of a mesh: (state, frozen, batch) -> (state, scalars, images [p * n, H, W, 3])."""

    def training_step(state: State, frozen: Frozen, batch: Batch) -> tuple[State, dict[str, jax.Array], jax.Array]:
        return step(state, frozen, batch)  # profiles and what was compiled have the name

    replicated = parallel.REPLICATED
    return parallel.spread(training_step, mesh, (replicated,) * 3, (replicated, replicated, parallel.SPREAD))
