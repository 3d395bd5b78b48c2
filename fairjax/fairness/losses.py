"""The loss terms (Shen et al., 2024, section 4.1; weights and factors as in the authors' scripts).

All are per image, and finite with zero gradient where they do not apply. Attributes are positions in
sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def alignment_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy [N] of `logits` [N, k] against `labels` [N] int, 0 where the label is -1."""
    has_label = labels >= 0
    # Masked before the logarithm: the logits of an image without a face may be anything, also not finite.
    log_probs = jax.nn.log_softmax(jnp.where(has_label[:, None], logits.astype(jnp.float32), 0))
    is_class = jnp.arange(logits.shape[1])[None, :] == labels[:, None]
    return -jnp.where(is_class, log_probs, 0).sum(axis=1)


def divergence(logits: jax.Array, frozen_logits: jax.Array, compared: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence [N] of the classes by `logits` [N, k] from those by `frozen_logits` [N, k].

    Of the images that are `compared` [N] bool, 0 of the others. No gradient flows into `frozen_logits`. It is what the
    cross-entropy against the frozen image's probabilities has above the least that it can be.
    """
    log_probs, frozen_log_probs = (
        jax.nn.log_softmax(jnp.where(compared[:, None], each.astype(jnp.float32), 0))
        for each in (logits, jax.lax.stop_gradient(frozen_logits))
    )
    return (jnp.exp(frozen_log_probs) * (frozen_log_probs - log_probs)).sum(axis=1)


def normalise(features: jax.Array) -> jax.Array:
    """`features` [..., d] at length 1; zero, with zero gradient, where they are zero; not finite where they are not."""
    features = features.astype(jnp.float32)
    squared = jnp.square(features).sum(axis=-1, keepdims=True)
    nonzero = squared != 0
    return jnp.where(nonzero, features * jax.lax.rsqrt(jnp.where(nonzero, squared, 1)), 0)


def cosine_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 - cosine similarity [N] of `a` and `b` [N, d]: in [0, 2], and 1 where one of them is zero."""
    return 1 - (normalise(a) * normalise(b)).sum(axis=-1)


def _matches(labels: Sequence[jax.Array], frozen_labels: Sequence[jax.Array]) -> list[jax.Array]:
    """Per attribute [N] bool: the target is set, and is the class of the frozen image already."""
    return [(ours >= 0) & (ours == frozen) for ours, frozen in zip(labels, frozen_labels, strict=True)]


def image_factors(
    labels: Sequence[jax.Array],
    frozen_labels: Sequence[jax.Array],
    has_face: jax.Array,
    factors: Sequence[float],
    no_face: float,
) -> jax.Array:
    """How much of the frozen image to keep [N]: `factor1` of the loss, `factor2` of its gradient in the box.

    1 where the frozen image has the target class in every attribute, else the smallest factor of those that
    differ.

    Args:
        labels: per attribute [N], target classes; -1, no target, counts as different.
        frozen_labels: per attribute [N], classes of the frozen model's images, -1 without a face.
        has_face: [N] bool, of the images being finetuned.
        factors: one for each attribute.
        no_face: for images without a face: 1 in experiments 1, 2 and 6, the smallest factor in 3, 4 and 5.
    """
    smallest = jnp.ones(has_face.shape, jnp.float32)
    for matches, factor in zip(_matches(labels, frozen_labels), factors, strict=True):
        smallest = jnp.where(matches, smallest, jnp.minimum(smallest, factor))
    return jnp.where(has_face, smallest, no_face)


def box_overlap(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """Intersections [N, 4] of boxes [N, 4] (left, top, right, bottom); of no width or height if empty."""
    return jnp.concatenate([jnp.maximum(boxes[:, :2], others[:, :2]), jnp.minimum(boxes[:, 2:], others[:, 2:])], axis=1)


@jax.custom_vjp
def scale_gradient_in_box(images: jax.Array, boxes: jax.Array, factors: jax.Array) -> jax.Array:
    """`images` [N, H, W, C] unchanged; their gradient is multiplied by `factors` [N] inside `boxes` [N, 4].

    Boxes are (left, top, right, bottom) in pixels, right and bottom outside; a pixel is inside when its
    centre is. An empty box scales nothing. Boxes and factors get no gradient.
    """
    return images


def _scale_forward(images, boxes, factors):
    return images, (boxes, factors)


def _scale_backward(saved, cotangent):
    boxes, factors = saved
    _, height, width, _ = cotangent.shape
    column, row = jnp.arange(width)[None, :] + 0.5, jnp.arange(height)[None, :] + 0.5
    left, top, right, bottom = (edge[:, None] for edge in boxes.T)
    in_columns, in_rows = (column >= left) & (column < right), (row >= top) & (row < bottom)  # [N, W], [N, H]
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    scale = jnp.where(inside, factors[:, None, None], 1).astype(cotangent.dtype)
    return cotangent * scale[..., None], None, None


scale_gradient_in_box.defvjp(_scale_forward, _scale_backward)


def nearest(embeddings: jax.Array, bank: jax.Array, allowed: jax.Array | None = None) -> jax.Array:
    """The rows [N, d] of `bank` [M, d], at length 1, nearest by cosine to each of `embeddings` [N, d].

    Args:
        allowed: [N, M] bool, which rows may be taken; where it allows none, any may.
    """
    bank = normalise(bank)
    similarity = jnp.matmul(normalise(embeddings), bank.T, precision=jax.lax.Precision.HIGHEST)
    if allowed is not None:
        similarity = jnp.where(allowed, similarity, similarity - 4)  # below every allowed one, in the same order
    return bank[jnp.argmax(similarity, axis=1)]


def realism_target(
    embeddings: jax.Array,
    frozen_embeddings: jax.Array,
    bank: jax.Array,
    bank_labels: Sequence[jax.Array] | None,
    labels: Sequence[jax.Array],
    frozen_labels: Sequence[jax.Array],
    frozen_probs: Sequence[jax.Array],
    confidence: float,
) -> jax.Array:
    """The embeddings [N, d], of length 1, that the images' faces are pulled to. No gradient flows through.

    The frozen image's face where that has the target class with at least this confidence in every attribute,
    else a real face of the bank: the one nearest to the image's own, as in the paper; or, where the bank says what
    its faces show and the image has a target in every attribute, the one of the target classes that is nearest to
    the frozen image's face. That one stays the same while the image changes, and does not hold back the change that
    is asked for. An image without a target, if it is pulled at all (`loss.face_untargeted`), keeps to the paper's:
    the frozen face would pull it back to what it was; and so does one whose frozen image shows no face.

    Args:
        embeddings, frozen_embeddings: [N, d], faces of the finetuned and of the frozen model's images.
        bank: [M, d], embeddings of real faces.
        bank_labels: per attribute [M], their classes; None where they are not known.
        labels, frozen_labels: per attribute [N], as for `image_factors`.
        frozen_probs: per attribute [N, k_a], class probabilities of the frozen images.
        confidence: 0.9 in experiments 1, 2 and 6, 0.8 in 3 and 5, 0.75 in 4.
    """
    keep = jnp.ones(embeddings.shape[0], bool)
    for matches, probs in zip(_matches(labels, frozen_labels), frozen_probs, strict=True):
        keep &= matches & (probs.max(axis=1) >= confidence)
    if bank_labels is None:
        found = nearest(embeddings, bank)
    else:
        allowed = jnp.ones((embeddings.shape[0], bank.shape[0]), bool)
        targeted = jnp.ones(embeddings.shape[0], bool)
        for label, frozen_label, real in zip(labels, frozen_labels, bank_labels, strict=True):
            allowed &= (label[:, None] < 0) | (label[:, None] == real[None, :])
            targeted &= (label >= 0) & (frozen_label >= 0)
        found = nearest(jnp.where(targeted[:, None], frozen_embeddings, embeddings), bank, allowed)
    return jax.lax.stop_gradient(jnp.where(keep[:, None], normalise(frozen_embeddings), found))
