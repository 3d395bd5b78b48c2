"""Which class each image should become: distributional alignment targets (Shen et al., 2024, section 4.1).

The class counts that N independent draws from the wished distribution would give are random. For each
possible count vector, optimal transport gives the images to the classes with the least change; the mean over
count vectors tells how likely each image is to be given each class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import xlogy

from fairjax.fairness.attributes import marginals
from fairjax.fairness.transport import transport_sets

# Up to this many count vectors the expectation is taken over all of them; beyond, over a sample.
MAX_EXACT_SETS = 10_000

# Count vectors less likely than this are left out: all of them together change no q by more than 1e-7.
_NEGLIGIBLE = 1e-11


class Targets(NamedTuple):
    """Targets of N images; each field has one array per attribute."""

    labels: tuple[jax.Array, ...]  # [N] int32, the class to become; -1 where invalid or too uncertain
    uncertainty: tuple[jax.Array, ...]  # [N] in [0, 1], 1 - max q; 1 where invalid
    q: tuple[jax.Array, ...]  # [N, k_a] probability of being given each class; 0 where invalid


def targets(
    probs: Sequence[jax.Array],
    distribution: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    *,
    num_sets: int = 1000,
    threshold: float = 0.2,
    cost_weights: Sequence[np.ndarray | None] | None = None,
) -> Targets:
    """Targets for the images of one prompt. Traceable, and no gradient flows through it.

    Two joint cells have a closed form; few count vectors are enumerated; else `num_sets` of them are drawn.

    Args:
        probs: per attribute [N, k_a], class probabilities, in the order of the attributes of the
            distribution. A sequence, not a dict: jax sorts the keys of dicts, and the order of the attributes
            has a meaning here.
        distribution: [K] over the joint cells, K the product of the k_a, row-major. Cells may have
            probability 0.
        valid: [N] bool, the images with a face. One whose probabilities are not finite counts as without.
        key: PRNG key for the drawn count vectors; unused on the exact paths.
        threshold: images more uncertain than this get no label.
        cost_weights: see `joint_cost`.
    """
    probs = tuple(lax.stop_gradient(jnp.asarray(p, jnp.float32)) for p in probs)
    sizes = tuple(p.shape[1] for p in probs)
    if math.prod(sizes) != distribution.shape[-1]:
        raise ValueError(f"distribution has {distribution.shape[-1]} cells; classes {sizes} have {math.prod(sizes)}")
    cost = joint_cost(probs, cost_weights)
    valid = valid & jnp.isfinite(cost).all(axis=1)
    q = _share_ties(_assignment_probabilities(cost, distribution, valid, key, num_sets), cost, valid)
    by_attribute = marginals(q, sizes)
    uncertainty = tuple(1 - q_a.max(axis=1) for q_a in by_attribute)
    labels = tuple(
        jnp.where(valid & (u <= threshold), jnp.argmax(q_a, axis=1), -1).astype(jnp.int32)
        for q_a, u in zip(by_attribute, uncertainty, strict=True)
    )
    return Targets(labels, uncertainty, by_attribute)


def joint_cost(probs: Sequence[jax.Array], cost_weights: Sequence[np.ndarray | None] | None = None) -> jax.Array:
    """Distances [N, K] from the images' probabilities to the corners of the joint cells.

    The root of the sum over attributes of squared Euclidean distances between `probs[a]` [N, k_a] and the
    one-hot corners. `cost_weights[a]` [k_a, k_a] (None: all ones) multiplies, in row j, the differences to
    corner j of class j: [[1, 1], [2, 1]] for (young, old) counts the young probability twice in the way to
    "old" (experiment 4).
    """
    cost_weights = [None] * len(probs) if cost_weights is None else cost_weights
    squared = jnp.zeros((probs[0].shape[0], 1), jnp.float32)
    for p, weights in zip(probs, cost_weights, strict=True):
        size = p.shape[1]
        weights = jnp.ones((size, size)) if weights is None else jnp.asarray(weights, jnp.float32)
        if weights.shape != (size, size):
            raise ValueError(f"cost_weights of shape {weights.shape} should be {(size, size)}, class to reach x class")
        difference = p[:, None, :] - jnp.eye(size)[None]  # [N, corner, class]
        term = jnp.square(difference * weights[None]).sum(axis=2)
        squared = (squared[:, :, None] + term[:, None, :]).reshape(p.shape[0], -1)
    return jnp.sqrt(squared)


def _assignment_probabilities(cost, distribution, valid, key, num_sets):
    """q [N, K] by the cheapest path that is exact enough."""
    num_images, num_cells = cost.shape
    if num_cells == 2:
        return two_class_q(cost, distribution, valid)
    if math.comb(num_images + num_cells - 1, num_cells - 1) <= MAX_EXACT_SETS:
        return enumerated_q(cost, distribution, valid)
    return sampled_q(cost, distribution, valid, key, num_sets)


def two_class_q(cost: jax.Array, distribution: jax.Array, valid: jax.Array) -> jax.Array:
    """q [N, 2] in closed form.

    Sorted by the cost of class 1 over class 0, the image of rank r is given class 1 when at least r + 1 of
    the n draws are: the tail of a Binomial(n, distribution[1]).
    """
    num_images = cost.shape[0]
    draws = jnp.arange(num_images + 1)
    both = jnp.stack([valid.sum() - draws, draws], axis=1)  # [N + 1, 2] counts
    tail = jnp.cumsum(_multinomial(both, distribution, num_images)[::-1])[::-1]  # P(class 1 drawn at least r times)
    preference = jnp.where(valid, cost[:, 1] - cost[:, 0], jnp.inf)
    # of images so sure that the difference no longer tells them apart, the smaller cost still does
    nearer = jnp.log(cost[:, 1]) - jnp.log(cost[:, 0])
    rank = jnp.argsort(jnp.lexsort((nearer, preference)))
    second = jnp.minimum(tail[rank + 1], 1)
    return jnp.where(valid[:, None], jnp.stack([1 - second, second], axis=1), 0)


def enumerated_q(cost: jax.Array, distribution: jax.Array, valid: jax.Array) -> jax.Array:
    """q [N, K] as the expectation over every count vector, weighted by its multinomial probability."""
    num_images, num_cells = cost.shape
    counts = jnp.asarray(_compositions(num_images, num_cells))
    # The compositions of n < N are those of N whose last part is at least N - n, less that much.
    counts = counts.at[:, -1].add(valid.sum() - num_images)
    weights = _multinomial(counts, distribution, num_images)
    # What is impossible or negligible becomes a copy of the likeliest vector, which costs the solver nothing.
    matters = weights > _NEGLIGIBLE
    counts = jnp.where(matters[:, None], counts, counts[jnp.argmax(weights)][None, :])
    return _mean_assignment(transport_sets(cost, counts, valid), jnp.where(matters, weights, 0), num_cells)


def sampled_q(cost: jax.Array, distribution: jax.Array, valid: jax.Array, key: jax.Array, num_sets: int) -> jax.Array:
    """q [N, K] as the mean over `num_sets` sets of labels drawn independently from the distribution."""
    num_images, num_cells = cost.shape
    drawn = jax.random.categorical(key, jnp.log(distribution), shape=(num_sets, num_images))
    is_cell = drawn[:, :, None] == jnp.arange(num_cells)[None, None, :]
    counts = (is_cell & valid[None, :, None]).sum(axis=1)
    return _mean_assignment(transport_sets(cost, counts, valid), jnp.full(num_sets, 1 / num_sets), num_cells)


def _mean_assignment(assignment, weights, num_cells):
    """[N, K] how much of the `weights` [S] gives each image each cell, under `assignment` [S, N]."""
    given = [(weights[:, None] * (assignment == cell)).sum(axis=0) for cell in range(num_cells)]
    return jnp.stack(given, axis=1)


def _multinomial(counts: jax.Array, distribution: jax.Array, largest: int) -> jax.Array:
    """Probabilities [S] of all count vectors [S, K] of one total; rows with a negative count are impossible.

    No count is above `largest`.

    Normalised over the rows, which takes out the common factor n! and the rounding of the logarithms.
    """
    log_factorial = jnp.asarray([math.lgamma(n + 1) for n in range(largest + 1)], jnp.float32)
    possible = (counts >= 0).all(axis=1)
    counts = jnp.maximum(counts, 0)
    log_weight = (xlogy(counts, distribution[None, :]) - log_factorial[counts]).sum(axis=1)
    return jax.nn.softmax(jnp.where(possible, log_weight, -jnp.inf))


@lru_cache
def _compositions(total: int, parts: int) -> np.ndarray:
    """All ways [C(total + parts - 1, parts - 1), parts] to write `total` as an ordered sum of counts."""
    rows = np.zeros((1, 0), np.int32)
    for _ in range(parts - 1):
        left = total - rows.sum(axis=1)
        following = np.concatenate([np.arange(n + 1, dtype=np.int32) for n in left])
        rows = np.column_stack([np.repeat(rows, left + 1, axis=0), following])
    return np.column_stack([rows, total - rows.sum(axis=1)]).astype(np.int32)


def _share_ties(q: jax.Array, cost: jax.Array, valid: jax.Array) -> jax.Array:
    """Gives images of equal cost the mean of their q, so that no image gains by its place in the batch."""
    same = (cost[:, None, :] == cost[None, :, :]).all(axis=2) & valid[:, None] & valid[None, :]
    shared = jnp.matmul(same.astype(q.dtype), q, precision=lax.Precision.HIGHEST)
    return shared / jnp.maximum(same.sum(axis=1), 1)[:, None]
