"""Targets: three paths to one expectation, in any order of the images; distributions are checked."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from fairjax.fairness import targets as module
from fairjax.fairness.attributes import (
    Attribute,
    Target,
    check_names,
    distribution,
    joint_cells,
    joint_target,
    marginals,
    per_prompt,
    uniform,
)
from fairjax.fairness.targets import enumerated_q, joint_cost, sampled_q, targets, two_class_q

GENDER = Attribute("gender", ("female", "male"))
RACE = Attribute("race", ("WMELH", "Black", "Indian", "Asian"))
AGE = Attribute("age", ("young", "old"))
KEY = jax.random.key(0)
YOUNG_TWICE = np.array([[1, 1], [2, 1]])

solve = jax.jit(targets, static_argnames=("num_sets", "threshold"))
enumerate_q = jax.jit(enumerated_q)
sample_q = jax.jit(sampled_q, static_argnames="num_sets")


def random_probs(seed, size, *classes):
    rng = np.random.default_rng(seed)
    return tuple(rng.dirichlet(np.full(k, 0.5), size).astype(np.float32) for k in classes)


@pytest.mark.parametrize("share", [0.5, 0.25, 0.0, 1.0])
@pytest.mark.parametrize("size", [1, 2, 17, 96])
def test_closed_form_is_the_binomial_tail_and_equals_enumeration(size, share):
    cost = joint_cost(random_probs(0, size, 2))
    valid = np.arange(size) != 3
    wished = jnp.array([1 - share, share])
    closed = jax.jit(two_class_q)(cost, wished, valid)
    # float32 against float32: 1e-5 is a hundred roundings.
    np.testing.assert_allclose(closed, enumerate_q(cost, wished, valid), atol=1e-5)
    rank = np.argsort(np.argsort(np.asarray(cost[:, 1] - cost[:, 0])[valid]))
    np.testing.assert_allclose(closed[valid, 1], scipy.stats.binom.sf(rank, valid.sum(), share), atol=1e-5)


def test_images_that_are_alike_share_what_there_is_to_assign():
    """Ties: whichever of them is taken, the classes are given out as often as is wished, and at no other cost."""
    probs = np.float32([[0.9, 0.1]] * 5 + [[0.2, 0.8]] * 4)
    cost, valid, wished = joint_cost((probs,)), np.ones(9, bool), jnp.array([0.7, 0.3])
    closed, enumerated = jax.jit(two_class_q)(cost, wished, valid), enumerate_q(cost, wished, valid)
    for q in (closed, enumerated):
        np.testing.assert_allclose(q.sum(0), 9 * np.array([0.7, 0.3]), atol=1e-5)
    assert (closed * cost).sum() == pytest.approx(float((enumerated * cost).sum()), abs=1e-5)


def test_enumeration_is_the_multinomial_expectation_of_linear_programs():
    size, wished = 6, np.array([0.5, 0.3, 0.2, 0.0])
    valid = np.array([True, True, False, True, True, True])
    cost = np.asarray(joint_cost(random_probs(1, size, 2, 2)))
    expected = np.zeros((size, 4))
    for counts in module._compositions(5, 4):
        plan = ot.emd(np.ones(5), counts.astype(float), cost[valid].astype(float))
        expected[valid] += scipy.stats.multinomial.pmf(counts, 5, wished) * plan
    np.testing.assert_allclose(enumerate_q(cost, jnp.asarray(wished), valid), expected, atol=1e-5)


def test_every_composition_is_listed_once():
    table = module._compositions(5, 4)
    assert len(table) == math.comb(8, 3) == len({tuple(row) for row in table})
    assert (table.sum(axis=1) == 5).all() and (table >= 0).all()


def test_sampling_converges_to_the_enumeration():
    cost = joint_cost(random_probs(2, 12, 3))
    valid, wished = np.arange(12) < 11, jnp.array([0.6, 0.3, 0.1])
    exact = enumerate_q(cost, wished, valid)
    error = [np.abs(sample_q(cost, wished, valid, KEY, num_sets=n) - exact).max() for n in (250, 4000)]
    # The standard error of a share of n sets is at most 0.5 / sqrt(n): four of them for the worst of 33
    # numbers.
    assert error[0] < 2 / math.sqrt(250) and error[1] < 2 / math.sqrt(4000)


def test_joint_targets_are_summed_to_each_attribute():
    probs = random_probs(3, 10, 2, 2)
    valid, wished = (
        np.ones(10, bool),
        distribution(Target(("gender", "age"), ((0.4, 0.1), (0.2, 0.3))), (GENDER, AGE)),
    )
    found = solve(probs, wished, valid, KEY)
    joint = enumerate_q(joint_cost(probs), wished, valid)
    np.testing.assert_allclose(found.q[0], np.stack([joint[:, :2].sum(1), joint[:, 2:].sum(1)], 1), atol=1e-6)
    np.testing.assert_allclose(found.q[1], joint[:, :2] + joint[:, 2:], atol=1e-6)
    # Each image goes somewhere, and the classes are given out as often as is wished.
    np.testing.assert_allclose(found.q[0].sum(axis=0), [5, 5], atol=1e-5)
    np.testing.assert_allclose(found.q[1].sum(axis=0), [6, 4], atol=1e-5)
    for labels, uncertainty, q in zip(*found, strict=True):
        np.testing.assert_array_equal(labels, np.where(uncertainty <= 0.2, np.argmax(q, 1), -1))


def test_sixteen_cells_follow_the_wished_marginals():
    probs = random_probs(4, 40, 2, 4, 2)
    wished = np.einsum("g,r,a->gra", [0.5, 0.5], np.full(4, 0.25), [0.75, 0.25]).reshape(-1)
    valid = np.arange(40) < 36
    found = solve(probs, wished, valid, KEY, num_sets=400, cost_weights=(None, None, YOUNG_TWICE))
    # Standard error of a mean count over 400 sets: below 3 / 20.
    for q, marginal in zip(found.q, marginals(wished, (2, 4, 2)), strict=True):
        np.testing.assert_allclose(q.sum(axis=0), 36 * marginal, atol=0.6)
        np.testing.assert_allclose(q.sum(axis=1), valid, atol=1e-5)


def test_joint_cost_counts_the_young_probability_twice_on_the_way_to_old():
    gender, age = np.array([[0.3, 0.7]]), np.array([[0.9, 0.1]])
    cost = joint_cost((gender, age), (None, YOUNG_TWICE))
    young, old = 0.1**2 + 0.1**2, (2 * 0.9) ** 2 + 0.9**2
    female, male = 0.7**2 + 0.7**2, 0.3**2 + 0.3**2
    np.testing.assert_allclose(cost[0], np.sqrt([female + young, female + old, male + young, male + old]), rtol=1e-6)


def test_two_class_target_is_not_inverted():
    probs = (np.stack([np.linspace(0.95, 0.05, 40), np.linspace(0.05, 0.95, 40)], axis=1).astype(np.float32),)
    labels = solve(probs, np.array([0.9, 0.1]), np.ones(40, bool), KEY).labels[0]
    assert (labels[:30] == 0).all() and labels[-1] == 1


def test_the_least_sure_change_where_all_are_surer_than_differences_tell():
    """Of images whose logits are 16 and more apart, of the same class, in any order."""
    apart = np.linspace(16, 26, 16).astype(np.float32)[np.random.default_rng(0).permutation(16)]
    probs = (np.asarray(jax.nn.softmax(np.stack([np.zeros(16, np.float32), apart], axis=1))),)
    labels = solve(probs, np.array([0.5, 0.5]), np.ones(16, bool), KEY).labels[0]
    by_certainty = labels[np.argsort(apart)]
    known = by_certainty[by_certainty >= 0]
    assert {0, 1} == set(known.tolist()) and (np.diff(known) >= 0).all()


@pytest.mark.parametrize(("size", "classes"), [(12, (2,)), (8, (3,)), (40, (2, 4, 2))])  # each of the three paths
def test_a_class_of_probability_zero_is_never_a_target(size, classes):
    """However sure of it the classifier is of every image."""
    probs = tuple(np.tile(np.eye(count, dtype=np.float32)[:1] * 0.98 + 0.02 / count, (size, 1)) for count in classes)
    first = np.r_[0, np.full(classes[0] - 1, 1 / (classes[0] - 1))]
    wished = np.repeat(first, math.prod(classes[1:])) / math.prod(classes[1:])
    found = solve(probs, wished, np.ones(size, bool), KEY, num_sets=50, threshold=1.0)
    assert (found.q[0][:, 0] == 0).all() and (found.labels[0] > 0).all()
    np.testing.assert_allclose(found.q[0].sum(), size, rtol=1e-5)


def test_of_what_is_certain_there_is_a_target_at_a_threshold_of_none():
    found = solve(random_probs(0, 5, 2), np.array([0.0, 1.0]), np.arange(5) < 4, KEY, threshold=0.0)
    assert found.labels[0].tolist() == [1, 1, 1, 1, -1]


@pytest.mark.parametrize("classes", [2, 3])
def test_images_that_look_alike_share_alike(classes):
    """Also where two that show no face look like the others."""
    probs = np.repeat(random_probs(5, 1, classes)[0], 8, axis=0)
    wished = np.arange(1, classes + 1) / (classes * (classes + 1) / 2)
    valid = np.arange(8) < 6
    q = solve((probs,), wished, valid, KEY).q[0]
    np.testing.assert_allclose(q, np.where(valid[:, None], wished, 0), atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.permutations(range(10)),
    st.integers(0, 2**31),
    st.integers(0, 10),
    st.sampled_from([(2,), (3,), (2, 2)]),
)
def test_order_of_the_images_does_not_matter(order, seed, num_valid, classes):
    probs = random_probs(seed, 10, *classes)
    wished = np.random.default_rng(seed).dirichlet(np.ones(math.prod(classes)))
    valid = np.arange(10) < num_valid
    order = np.array(order)
    here = solve(probs, wished, valid, KEY)
    there = solve(tuple(p[order] for p in probs), wished, valid[order], KEY)
    for q, q_there in zip(here.q, there.q, strict=True):
        np.testing.assert_allclose(np.asarray(q)[order], q_there, atol=1e-5)


def test_maps_over_prompts_each_with_its_own_distribution():
    first, second = random_probs(6, 8, 3)[0], random_probs(7, 8, 3)[0]
    wished = np.array([[1, 0, 0], [0.2, 0.3, 0.5]], np.float32)
    valid = np.array([[True] * 8, [True] * 5 + [False] * 3])
    both = jax.jit(jax.vmap(lambda p, d, v: targets((p,), d, v, KEY)))(np.stack([first, second]), wished, valid)
    for i, p in enumerate((first, second)):
        np.testing.assert_allclose(both.q[0][i], solve((p,), wished[i], valid[i], KEY).q[0], atol=1e-6)
    assert (both.labels[0][0] == 0).all()


@pytest.mark.parametrize("classes", [(2,), (3,), (2, 4)])
def test_same_targets_on_one_and_on_eight_devices_that_gather_the_images(classes):
    probs, valid = random_probs(10, 16, *classes), np.arange(16) < 13
    wished = np.full(math.prod(classes), 1 / math.prod(classes), np.float32)

    def per_device(probs, valid):
        gathered = jax.lax.all_gather((probs, valid), "data", tiled=True)
        q = targets(gathered[0], wished, gathered[1], KEY, num_sets=50).q
        first = jax.lax.axis_index("data") * 2
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, 2), q)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(per_device, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    alone = solve(probs, wished, valid, KEY, num_sets=50).q
    for there, here in zip(jax.jit(spread)(probs, valid), alone, strict=True):
        np.testing.assert_allclose(there, here, atol=1e-6)


@pytest.mark.parametrize("classes", [(2,), (3,), (2, 4, 2)])
def test_no_valid_image_gives_no_label_and_no_gradient(classes):
    probs = tuple(np.full((20, k), np.nan, np.float32) for k in classes)
    wished = np.full(math.prod(classes), 1 / math.prod(classes), np.float32)

    def loss(probs):
        found = targets(probs, wished, jnp.zeros(20, bool), KEY, num_sets=8)
        return sum(q.sum() for q in found.q), found

    gradient, found = jax.jit(jax.grad(loss, has_aux=True))(probs)
    for g, labels, uncertainty, q in zip(gradient, *found, strict=True):
        assert (labels == -1).all() and (uncertainty == 1).all() and (q == 0).all() and (g == 0).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_image_with_non_finite_probabilities_is_left_out(classes):
    probs = random_probs(9, 10, classes)[0]
    wished, valid = np.full(classes, 1 / classes, np.float32), np.ones(10, bool)
    broken = np.where(np.arange(10)[:, None] == 4, np.nan, probs)
    expected = solve((probs,), wished, valid & (np.arange(10) != 4), KEY)
    found = solve((broken,), wished, valid, KEY)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_distribution_is_checked_in_one_line():
    def message(*args):
        with pytest.raises(ValueError) as error:
            distribution(Target(*args), (GENDER, RACE, AGE))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "did you mean 'gender'" in message(("gendr",), (0.5, 0.5))
    assert "sums to 0.9" in message(("gender",), (0.5, 0.4))
    assert "has -0.5" in message(("gender",), (1.5, -0.5))
    assert "has nan" in message(("gender",), (float("nan"), 1.0))
    assert "8 probabilities, 2 x 4 of gender x race" in message(("gender", "race"), (0.5, 0.5))
    assert "4 probabilities" in message(("gender", "age"), ((0.5, 0.5), (0.5,)))
    assert "named once" in message(("age", "age"), (0.25,) * 4)
    assert "empty" in message((), ())


def test_a_distribution_that_does_not_sum_to_1_is_told_with_the_field_that_holds_it():
    attributes, even = (GENDER, AGE), uniform((GENDER,))
    with pytest.raises(ValueError, match="^target.marginals.age sums to 0.9: it should sum to 1$"):
        joint_target(("gender", "age"), None, {"age": (0.5, 0.4)}, attributes)
    with pytest.raises(ValueError, match="^target.prompts.pilot sums to 0.9: it should sum to 1$"):
        per_prompt(("nurse", "pilot"), dataclasses.replace(even, own={"pilot": (0.5, 0.4)}), attributes)
    with pytest.raises(ValueError, match="^target.distribution sums to 0.9: it should sum to 1$"):
        joint_target(("gender",), (0.5, 0.4), {}, attributes)


def test_names_are_checked_against_the_attributes_that_there_are():
    check_names(["age"], (GENDER, AGE), "loss.factor1")
    with pytest.raises(ValueError, match="^loss.factor1: no attribute 'agee'; did you mean 'age'?"):
        check_names(["gender", "agee"], (GENDER, AGE), "loss.factor1")


def test_attribute_is_checked():
    with pytest.raises(ValueError, match="at least two"):
        Attribute("gender", ("female",))
    with pytest.raises(ValueError, match="should all differ"):
        Attribute("gender", ("female", "female"))
    with pytest.raises(ValueError, match="3 cells; classes"):
        targets(random_probs(0, 4, 2), jnp.ones(3) / 3, jnp.ones(4, bool), KEY)


def test_nested_flat_uniform_and_per_prompt_distributions():
    nested = Target(("gender", "age"), ((0.4, 0.1), (0.2, 0.3)))
    flat = Target(("gender", "age"), (0.4, 0.1, 0.2, 0.3))
    attributes = (GENDER, RACE, AGE)
    np.testing.assert_array_equal(distribution(nested, attributes), distribution(flat, attributes))
    even = uniform((GENDER, AGE))
    np.testing.assert_array_equal(distribution(even, attributes), np.full(4, 0.25, np.float32))
    uneven = dataclasses.replace(even, own={"a pilot": nested.distribution})
    table = per_prompt(("a nurse", "a pilot"), uneven, attributes)
    np.testing.assert_allclose(table, [[0.25] * 4, [0.4, 0.1, 0.2, 0.3]])
    with pytest.raises(ValueError, match="target.prompts.a pilot has 2 cells: should be 4 probabilities"):
        per_prompt(("a pilot",), dataclasses.replace(even, own={"a pilot": (0.5, 0.5)}), attributes)


def test_marginals_undo_joint_cells():
    probs = random_probs(8, 5, 2, 4, 2)
    for p, marginal in zip(probs, marginals(joint_cells(probs), (2, 4, 2)), strict=True):
        np.testing.assert_allclose(marginal, p, atol=1e-6)
