"""Exact optimal transport from images to class counts, for many count vectors at once.

Each image has one unit of mass and goes whole to one class, so the linear program
(Shen et al., 2024, section 4.1)

    min_T <T, cost>,   rows of T sum to 1,   column j sums to counts[j]

is an assignment, and what matters is a graph of k nodes, one a class: the edge j -> l costs what the cheapest
move of an image from j to l costs. An assignment is optimal for the counts that it has exactly when this
graph has no negative cycle, and stays so when images are moved along a shortest path from a class that has
too many to one that has too few (successive shortest paths; Ahuja, Magnanti and Orlin, "Network Flows",
section 9.7).

All count vectors share one cost. Each starts from the optimum of a typical one, and few moves remain.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

# Costs become integers up to 2^24, the precision of float32: sums along paths are then exact, and nothing can
# cycle on rounding. An edge that does not exist costs 2^30, more than the longest path of 32 classes.
_LEVELS = 2**24
_NO_EDGE = 2**30
MAX_CLASSES = 32

# Count vectors solved in lockstep: enough to fill vector units, few enough that a hard one holds few up.
_CHUNK = 256


def transport(cost: jax.Array, counts: jax.Array, valid: jax.Array) -> jax.Array:
    """The class of each image in a cheapest assignment with the given class counts.

    Args:
        cost: [N, k] finite, the cost of giving image i class j. k is at most 32.
        counts: [k] integers that sum to the number of valid images.
        valid: [N] bool, the images that take part.

    Returns:
        [N] int32 class indices, -1 where invalid. Optimal but for rounding each image's cost to 2^-24 of the
        largest difference in cost.
    """
    cost = _quantise(cost, valid)
    return _move(cost, counts, _cheapest(cost, valid))


def transport_sets(cost: jax.Array, counts: jax.Array, valid: jax.Array) -> jax.Array:
    """`transport` for each row of `counts` [S, k]: [S, N] int32."""
    cost = _quantise(cost, valid)
    to_mean = jnp.abs(counts - jnp.mean(counts, axis=0, keepdims=True)).sum(axis=1)
    typical = counts[jnp.argmin(to_mean)]
    start = _move(cost, typical, _cheapest(cost, valid))

    # By the work that remains, so that the sets of a chunk take about equally long; what fills up the last
    # is cut off again.
    num_sets, chunk = counts.shape[0], min(_CHUNK, counts.shape[0])
    order = jnp.argsort(jnp.abs(counts - typical[None, :]).sum(axis=1))
    chunks = jnp.pad(order, (0, -num_sets % chunk), constant_values=0).reshape(-1, chunk)
    move_chunk = jax.vmap(lambda row: _move(cost, row, start))
    assignment = lax.map(lambda rows: move_chunk(counts[rows]), chunks).reshape(-1, cost.shape[0])
    return jnp.zeros_like(assignment, shape=(num_sets, cost.shape[0])).at[order].set(assignment[:num_sets])


def _quantise(cost: jax.Array, valid: jax.Array) -> jax.Array:
    """The cost above each image's cheapest class (which leaves the optimum as it is), in [0, 2^24]."""
    num_classes = cost.shape[1]
    if num_classes > MAX_CLASSES:
        raise ValueError(f"cost has {num_classes} classes; at most {MAX_CLASSES} fit the integer arithmetic")
    above = jnp.where(valid[:, None], cost - cost.min(axis=1, keepdims=True), 0).astype(jnp.float32)
    largest = above.max()
    return jnp.round(above * (_LEVELS / jnp.where(largest > 0, largest, 1))).astype(jnp.int32)


def _cheapest(cost: jax.Array, valid: jax.Array) -> jax.Array:
    """Every image in its cheapest class: optimal for the counts that this happens to give."""
    return jnp.where(valid, jnp.argmin(cost, axis=1), -1).astype(jnp.int32)


def _move(cost: jax.Array, counts: jax.Array, assignment: jax.Array) -> jax.Array:
    """Turns an `assignment` [N], optimal for its own counts, into one that is optimal for `counts` [k]."""
    classes = jnp.arange(cost.shape[1])

    def excess(assignment):
        return (assignment[:, None] == classes[None, :]).sum(axis=0) - counts

    def step(state):
        assignment, excess_ = state
        assignment = _augment(cost, assignment, excess_)
        return assignment, excess(assignment)

    def unbalanced(state):
        return (state[1] > 0).any() & (state[1] < 0).any()

    return lax.while_loop(unbalanced, step, (assignment, excess(assignment)))[0]


def _augment(cost: jax.Array, assignment: jax.Array, excess: jax.Array) -> jax.Array:
    """Moves images along shortest paths, one from each class in excess whose tree has a class in want.

    The trees of shortest paths from different classes are disjoint, and all their edges are tight under the
    same potential (the distance), so the paths may be taken together.
    """
    num_classes = excess.shape[0]
    classes = jnp.arange(num_classes)
    member = assignment[:, None] == classes[None, :]  # [N, k]
    own = jnp.where(member, cost, 0).sum(axis=1)
    extra = cost - own[:, None]  # [N, k] what moving image i to class l costs
    edges = jnp.where(member[:, :, None], extra[:, None, :], _NO_EDGE).min(axis=0)  # [k, k] from, to

    parent = _shortest_path_parents(edges, excess > 0)
    jumps = [parent]  # 1, 2, 4, ... edges up the tree; roots are their own parents
    for _ in range(math.ceil(math.log2(num_classes))):
        jumps.append(jumps[-1][jumps[-1]])
    root = jumps.pop()

    lacks = excess < 0
    same_tree_before = (root[:, None] == root[None, :]) & (classes[:, None] < classes[None, :])
    on_path = lacks & ~(same_tree_before & lacks[:, None]).any(axis=0)  # one end for each tree
    for jump in jumps:
        on_path |= ((jump[None, :] == classes[:, None]) & on_path[None, :]).any(axis=1)

    reached = on_path & (root != classes)
    taken = (parent[None, :] == classes[:, None]) & reached[None, :]  # [from, to], at most one a row
    to = jnp.where(taken.any(axis=1), jnp.argmax(taken, axis=1), -1)  # [k]
    price = jnp.where(taken, edges, 0).sum(axis=1)  # [k]

    # From each class on a path goes the first of its images whose move costs what the edge costs.
    image = jnp.arange(assignment.shape[0])
    fits = ((extra == price[assignment][:, None]) & (classes[None, :] == to[assignment][:, None])).any(axis=1)
    first = jnp.where(member & fits[:, None], image[:, None], image.size).min(axis=0)  # [k]
    return jnp.where(first[assignment] == image, to[assignment], assignment)


def _shortest_path_parents(edges: jax.Array, source: jax.Array) -> jax.Array:
    """The forest of shortest paths from the `source` classes [k]: each class's parent [k], itself for a root.

    Bellman and Ford, all edges a round. `level` is the round in which a distance last fell: a parent's level
    is below its child's, which keeps cycles of cost zero out of the forest.
    """

    def relax(state):
        distance, level, round_, _ = state
        shorter = jnp.minimum(distance, (distance[:, None] + edges).min(axis=0))
        fell = shorter < distance
        return shorter, jnp.where(fell, round_, level), round_ + 1, fell.any()

    distance = jnp.where(source, 0, _NO_EDGE - 1)
    level = jnp.where(source, 0, 1)
    distance, level, _, _ = lax.while_loop(lambda state: state[3], relax, (distance, level, 1, source.any()))
    tight = (distance[:, None] + edges == distance[None, :]) & (level[:, None] < level[None, :])
    classes = jnp.arange(edges.shape[0])
    return jnp.where(level > 0, jnp.argmax(tight, axis=0), classes)
