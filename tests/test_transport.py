"""The transport solver is exact, as judged by POT's network simplex on the same problems."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

from fairjax.fairness.transport import transport, transport_sets

solve_sets = jax.jit(transport_sets)


def random_problem(rng, size, classes, num_sets):
    """Costs with ties and corners, some images invalid, counts that may be skewed or zero."""
    probs = rng.dirichlet(np.full(classes, rng.choice([0.05, 0.5, 5.0])), size)
    if rng.random() < 0.3:
        probs = np.round(probs * 4) / 4
    cost = np.sqrt(((probs[:, None, :] - np.eye(classes)[None]) ** 2).sum(axis=2)).astype(np.float32)
    valid = np.arange(size) < rng.integers(1, size + 1)
    rng.shuffle(valid)
    distribution = rng.dirichlet(np.full(classes, rng.choice([0.1, 1.0, 100.0])))
    if rng.random() < 0.3:
        distribution[rng.integers(classes)] = 0
        distribution /= distribution.sum()
    return cost, rng.multinomial(valid.sum(), distribution, size=num_sets), valid


def optimal_cost(cost, counts, valid):
    cost = cost[valid].astype(np.float64)
    return (ot.emd(np.ones(len(cost)), counts.astype(np.float64), cost) * cost).sum()


def check_exact(assignment, cost, counts, valid):
    assignment = np.asarray(assignment)
    assert (assignment[~valid] == -1).all()
    np.testing.assert_array_equal(np.bincount(assignment[valid], minlength=len(counts)), counts)
    found = cost.astype(np.float64)[valid, assignment[valid]].sum()
    # Costs are rounded to 2^-24 of at most 2, for up to 96 images: 1e-5 in all.
    assert abs(found - optimal_cost(cost, counts, valid)) <= 1e-5


@pytest.mark.parametrize(
    "size,classes",
    [
        (1, 2),
        (1, 16),
        (2, 7),
        (7, 12),
        (16, 2),
        (16, 5),
        (24, 16),
        (32, 4),
        (49, 3),
        (64, 8),
        (83, 10),
        (96, 2),
        (96, 16),
    ],
)
def test_cost_equals_linear_programming_on_random_problems(size, classes):
    rng = np.random.default_rng([size, classes])
    for _ in range(30):
        cost, counts, valid = random_problem(rng, size, classes, num_sets=5)
        assignments = solve_sets(cost, counts, valid)
        for assignment, row in zip(assignments, counts, strict=True):
            check_exact(assignment, cost, row, valid)


def test_unbounded_costs_far_from_the_balanced_counts():
    rng = np.random.default_rng(0)
    cost = rng.normal(size=(40, 6)).astype(np.float32)
    valid = np.ones(40, bool)
    counts = np.array([[40, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 40], [0, 20, 0, 0, 20, 0], [7, 7, 7, 7, 6, 6]])
    for assignment, row in zip(solve_sets(cost, counts, valid), counts, strict=True):
        check_exact(assignment, cost, row, valid)


def test_single_problem_maps_over_costs_and_counts():
    rng = np.random.default_rng(1)
    problems = [random_problem(rng, 12, 3, num_sets=1) for _ in range(8)]
    cost, counts, valid = (np.stack(part) for part in zip(*problems, strict=True))
    for solved, problem in zip(jax.vmap(transport)(cost, counts[:, 0], valid), problems, strict=True):
        check_exact(solved, problem[0], problem[1][0], problem[2])


def test_equal_costs_and_no_valid_image_terminate():
    counts = jnp.array([3, 2, 1])
    flat = transport(jnp.ones((6, 3)), counts, jnp.ones(6, bool))
    np.testing.assert_array_equal(np.bincount(flat, minlength=3), counts)
    nothing = transport(jnp.full((6, 3), jnp.nan), jnp.zeros(3, int), jnp.zeros(6, bool))
    np.testing.assert_array_equal(nothing, -np.ones(6))


def test_too_many_classes_are_refused():
    with pytest.raises(ValueError, match="33 classes; at most 32"):
        transport(jnp.zeros((2, 33)), jnp.zeros(33, int), jnp.ones(2, bool))
