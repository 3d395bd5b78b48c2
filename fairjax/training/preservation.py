"""The losses that keep what need not change: what images mean, whose faces they show, and all else of a person.

Each compares an image with the frozen model's from the same noise (Shen et al., 2024, section 4.1 and appendix).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fairjax.config import LossSection
from fairjax.faces.judges import Judges, Verdict
from fairjax.fairness import losses
from fairjax.models.functional import in_chunks


class Pairs(NamedTuple):
    """A device's n images beside the frozen model's from the same noise, and what is known of both."""

    images: jax.Array  # [n, H, W, 3]
    original: jax.Array  # [n, H, W, 3], the frozen model's
    verdict: Verdict
    frozen_verdict: Verdict
    labels: list[jax.Array]  # by attribute [n], the class to become; -1 for none
    frozen_labels: list[jax.Array]  # by attribute [n], the class of the frozen model's image; -1 without a face


@dataclasses.dataclass(frozen=True, eq=False)
class Preservation:
    """The static part: networks and choices."""

    judges: Judges
    attributes: tuple[str, ...]  # those of the target, in its order
    loss: LossSection
    microbatch: int | None  # images that a network sees at a time; None is all

    def __call__(self, pairs: Pairs, asked: jax.Array, params: dict[str, Any]) -> dict[str, jax.Array]:
        """The losses of each image [n], by the names that their weights have in `loss`.

        Args:
            asked: [n], whether an image's prompt asks for somebody; where none does, nothing at all should change.
            params: of the judges.
        """
        kept = jnp.where(asked, self._factors(pairs, self.loss.factor1, self.loss.no_face), 1)
        return {
            "image": kept * self._change(pairs, params),
            "face": self._face_loss(pairs, params),
            "other_attributes": self._drift(pairs),
        }

    def _change(self, pairs: Pairs, params: dict[str, Any]) -> jax.Array:
        """How far the image means something else; what must change is felt less inside the face (appendix).

        As in the authors' scripts that is the square which classifiers see, in both images: hair and ears with it.
        """
        images, original, verdict, frozen_verdict, _, _ = pairs
        inside = self._factors(pairs, self.loss.factor2, no_face=1.0)
        both = verdict.has_face & frozen_verdict.has_face
        squares = (self.judges.judge.squares(each.faces) for each in (verdict, frozen_verdict))
        overlap = losses.box_overlap(*squares)
        boxes = jnp.where(both[:, None], overlap, 0)
        scaled = losses.scale_gradient_in_box(images, boxes, inside)
        meaning = partial(self.judges.meaning, params)
        ours, theirs = (in_chunks(meaning, self.microbatch, shown) for shown in (scaled, original))
        return sum(losses.cosine_distance(a, b) for a, b in zip(ours, theirs, strict=True))

    def _face_loss(self, pairs: Pairs, params: dict[str, Any]) -> jax.Array:
        """Keeps faces those of somebody: the frozen image's own where it may stay, else a near one of the bank."""
        images, original, verdict, frozen_verdict, labels, frozen_labels = pairs
        bank = params["bank"]
        identity = partial(self.judges.identity, params)
        embeddings = in_chunks(identity, self.microbatch, images, verdict.faces)
        frozen_embeddings = in_chunks(identity, self.microbatch, original, frozen_verdict.faces)
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

    def _factors(self, pairs: Pairs, by_attribute: dict[str, float], no_face: float) -> jax.Array:
        """How much of each frozen image to keep [n]; attributes that are not named have the default factor."""
        _, _, verdict, _, labels, frozen_labels = pairs
        factors = [by_attribute.get(name, self.loss.default_factor) for name in self.attributes]
        return losses.image_factors(labels, frozen_labels, verdict.has_face, factors, no_face)
