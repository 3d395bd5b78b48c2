"""How a classifier learns: its loss, over the images that have a label, and its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairjax.faces.classifier import Classifier
from fairjax.models.functional import Params
from fairjax.models.mobilenet import MOMENTUM
from fairjax.training.fit import Loss, overlay

Batch = Callable[[int], Any]

Pixels = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""(indices [k], generator) -> images [k, h, w, 3], float32 in [-1, 1], varied as training pictures are."""


def picks(seed: int, count: int, batch_size: int) -> Callable[[int], np.ndarray]:
    """The examples [batch_size] that step `step` sees: a pure function of the step."""
    return lambda step: np.random.default_rng([seed, step]).integers(0, count, batch_size)


def against(loss: Callable[[jax.Array], jax.Array], images: jax.Array, radius: float, key: jax.Array) -> jax.Array:
    """`images` [n, h, w, c], each moved by `radius` (Euclidean) to a larger `loss`: one step from a random start.

    A classifier that is trained on these (Wong et al., 2020) moves least for patterns that nobody sees, so that
    its gradient, which finetuning follows, is one of shapes and colours (Santurkar et al., 2019).
    """

    def onto_sphere(x: jax.Array) -> jax.Array:
        return radius * x * jax.lax.rsqrt(jnp.sum(x**2, axis=(1, 2, 3), keepdims=True) + 1e-12)

    direction, length = jax.random.split(key)
    start = onto_sphere(jax.random.normal(direction, images.shape))
    start *= jax.random.uniform(length, (len(images), 1, 1, 1))
    return images + onto_sphere(start + onto_sphere(jax.grad(loss)(images + start)))


def balance(labels: np.ndarray, classes: int) -> np.ndarray:
    """What an example of each class [classes] counts, so that all together count alike, and an example 1 in the mean.

    Args:
        labels: [n] class numbers, -1 where there is none; a class without examples counts nothing.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    weights = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
    return (weights * counts.sum() / max((counts > 0).sum(), 1)).astype(np.float32)


def classification(
    classifier: Classifier, pixels: Pixels, labels: dict[str, np.ndarray], batch_size: int, seed: int,
    radius: float = 0.0, balanced: bool = False,
) -> tuple[Loss, Batch]:  # fmt: skip
    """Cross-entropy of every head, over the images that have its label.

    Args:
        labels: head -> [n] class numbers, -1 where an image has no such label.
        radius: of the ball around each image in which the worst is sought, in units of [-1, 1] pixels; 0 for none.
        balanced: let all classes of a head count alike, however often they come.
    """
    count = len(next(iter(labels.values())))
    pick, heads = picks(seed, count, batch_size), classifier.heads
    if balanced:
        weights = {name: balance(labels[name], len(classes)) for name, classes in heads.items()}
    else:
        weights = {name: np.ones(len(classes), np.float32) for name, classes in heads.items()}

    def loss(params: Params, batch: dict[str, Any], key: jax.Array):
        images = batch["images"]
        if radius:
            images = against(lambda x: loss_of(params, x, batch)[0], images, radius, key)
        return loss_of(params, images, batch)

    def loss_of(params: Params, images: jax.Array, batch: dict[str, Any]):
        logits, statistics = classifier.network.apply(params, images, method="train")
        total, right = jnp.zeros(()), {}
        for name, part in classifier.parts().items():
            label, known = batch["labels"][name], batch["labels"][name] >= 0
            count = jnp.maximum(known.sum(), 1)
            label = jnp.maximum(label, 0)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits[:, part], label)
            total += jnp.where(known, entropy * jnp.asarray(weights[name])[label], 0.0).sum() / count
            right[name] = (known & (logits[:, part].argmax(1) == label)).sum() / count
        return total, (right, statistics)

    def batch(step: int) -> dict[str, Any]:
        i = pick(step)
        images = pixels(i, np.random.default_rng([seed + 1, step]))
        return {"images": images, "labels": {name: label[i] for name, label in labels.items()}}

    return loss, batch


def restated(classifier: Classifier, params: Params, batches: Sequence[np.ndarray]) -> Params:
    """`params` with the statistics of batch normalisation that these weights have: the means over `batches` of images.

    Running statistics are those of weights of long ago, and averaged weights never had any; after few steps a
    classifier is much the worse for it (Wu and Johnson, 2021, "precise" batch normalisation).
    """
    statistics = jax.jit(lambda params, images: classifier.network.apply(params, images, method="train")[1])
    shapes = jax.eval_shape(statistics, params, batches[0])
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    blank = overlay(params, total)
    for images in batches:  # of each: nothing before it, and MOMENTUM of itself
        total = jax.tree.map(jnp.add, total, statistics(blank, images))
    return overlay(params, jax.tree.map(lambda sums: sums / (MOMENTUM * len(batches)), total))
