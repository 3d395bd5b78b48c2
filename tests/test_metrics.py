"""Metrics: golden numbers worked by hand, and the floor that an exactly fair model has."""

import numpy as np
import pytest

from fairjax.fairness.metrics import (
    bias,
    bias_without_floor,
    divergence,
    divergence_without_floor,
    fair_divergence,
    fair_floor,
    fair_total_variation,
    frequencies,
    total_variation,
    total_variation_without_floor,
)

UNEVEN = {
    "75/25": np.array([0.75, 0.25]),
    "three classes": np.array([0.6, 0.3, 0.1]),
    "one is not to be": np.array([0.7, 0.3, 0.0]),
    "gender x race": np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]),
}


def test_bias_is_the_mean_difference_over_pairs_of_classes():
    assert bias(np.array([0.8, 0.2])) == pytest.approx(0.6)
    assert bias(np.array([1.0, 0, 0, 0])) == pytest.approx(0.5)
    assert bias(np.array([0.4, 0.3, 0.2, 0.1])) == pytest.approx((0.1 * 3 + 0.2 * 2 + 0.3) / 6)
    many = np.random.default_rng(0).dirichlet(np.ones(7), size=(3, 2))
    pairs = np.abs(many[..., :, None] - many[..., None, :])[..., *np.triu_indices(7, k=1)]
    np.testing.assert_allclose(bias(many), pairs.mean(-1), rtol=1e-13)
    assert np.isnan(bias(np.full(3, np.nan)))


def test_frequencies_of_joint_cells_are_row_major():
    np.testing.assert_allclose(
        frequencies([np.array([0, 1, 1, 1]), np.array([2, 0, 0, 1])], (2, 3)), [0, 0, 0.25, 0.5, 0.25, 0]
    )


def test_distance_to_a_target_that_is_not_uniform():
    assert total_variation(np.array([0.75, 0.25]), np.array([0.75, 0.25])) == 0
    assert total_variation(np.array([1.0, 0]), np.array([0.75, 0.25])) == pytest.approx(0.25)


def test_fair_floor_equals_its_definition_and_golden_numbers():
    # For two classes n C(n - 1, (n - 1) // 2) / 2^(n - 1) / n, the mean distance of a random walk.
    assert fair_floor(64, 2) == pytest.approx(0.0993, abs=5e-5)
    assert fair_floor(16, 2) == pytest.approx(0.1964, abs=5e-5)
    assert fair_floor(1, 2) == pytest.approx(1)
    draws = np.random.default_rng(0).multinomial(80, [1 / 4] * 4, size=20_000) / 80
    simulated = np.mean([bias(shares) for shares in draws])
    assert fair_floor(80, 4) == pytest.approx(simulated, abs=5e-4)  # four standard errors


@pytest.mark.parametrize(
    ("num_images", "classes", "floor"),
    [(60, 2, 0.103), (80, 4, 0.063), (160, 2, 0.063), (160, 4, 0.045), (160, 8, 0.031)],
)
def test_the_floor_at_the_papers_numbers_of_images_is_known_to_three_digits(num_images, classes, floor):
    assert fair_floor(num_images, classes) == pytest.approx(floor, abs=5e-4)


def test_the_distance_that_an_exactly_fair_model_has_is_the_mean_over_draws():
    wished = np.array([0.75, 0.25, 0.0])
    draws = np.random.default_rng(0).multinomial(64, wished, size=20_000) / 64
    simulated = np.mean([total_variation(shares, wished) for shares in draws])
    assert fair_total_variation(64, wished) == pytest.approx(simulated, abs=1e-3)  # four standard errors
    assert fair_total_variation(64, np.array([0.5, 0.5])) == pytest.approx(fair_floor(64, 2) / 2)


def test_the_divergence_that_an_exactly_fair_model_has_is_the_mean_over_draws():
    for wished in UNEVEN.values():
        draws = np.random.default_rng(0).multinomial(64, wished, size=20_000) / 64
        simulated = divergence(draws, wished).mean()
        assert fair_divergence(64, wished) == pytest.approx(simulated, rel=0.04)  # four standard errors, at two classes


def estimates(shares, distribution, num_images=64, draws=20_000):
    """Means of the measures without their floors, over prompts of shares [..., K], many of each."""
    shares = np.broadcast_to(shares, (draws, np.shape(shares)[-1]))
    seen, images = (
        np.random.default_rng(0).multinomial(num_images, shares) / num_images,
        np.full((draws, 1), num_images),
    )
    return (
        bias_without_floor(seen, images).mean(),
        total_variation_without_floor(seen, distribution, images).mean(),
        divergence_without_floor(seen, distribution, images).mean(),
    )


@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("num_images", [16, 64])
def test_a_model_that_meets_an_uneven_target_exactly_is_at_no_distance(name, num_images):
    wished = UNEVEN[name]
    _, distance, divergent = estimates(wished, wished, num_images)
    floors = fair_total_variation(num_images, wished), fair_divergence(num_images, wished)
    assert distance == pytest.approx(0, abs=0.03 * floors[0])
    left = np.sum((1 - wished[wished > 0]) ** num_images) / num_images  # what is left out of the series
    assert -0.03 * floors[1] < divergent < left + 0.03 * floors[1]


@pytest.mark.parametrize("classes", [2, 3, 4, 8])
def test_an_exactly_even_model_has_no_bias(classes):
    even = np.full(classes, 1 / classes)
    found, distance, _ = estimates(even, even)
    assert found == pytest.approx(0, abs=0.03 * fair_floor(64, classes))
    assert distance == pytest.approx(0, abs=0.03 * fair_total_variation(64, even))


@pytest.mark.parametrize(("classes", "true"), [(2, 0.3), (2, 0.6), (2, 1.0), (4, 0.2), (4, 0.5), (8, 0.1)])
def test_without_the_floor_the_mean_measurement_is_the_true_bias(classes, true):
    lead = true * classes / 2
    shares = np.full(classes, (1 - lead) / classes)
    shares[0] += lead
    assert bias(shares) == pytest.approx(true)
    assert estimates(shares, shares)[0] == pytest.approx(true, abs=0.01)


def test_a_bias_as_small_as_the_floor_is_told_too_low_by_less_than_half_of_it():
    """The limit that docs/evaluation.md states, and that it is the worst, among all biases of two classes."""
    floor = fair_floor(64, 2)
    biases = np.linspace(0, 1, 41)
    errors = np.array([estimates([0.5 + b / 2, 0.5 - b / 2], np.full(2, 0.5))[0] - b for b in biases])
    assert -0.45 < errors.min() / floor < -0.35 and biases[errors.argmin()] == pytest.approx(floor, abs=0.03)
    assert errors.max() < 0.12 * floor and (np.abs(errors[biases > 2 * floor]) < 0.15 * floor).all()


def test_the_floor_is_removed_where_prompts_differ():
    """Half of the prompts even and half of one class: the mean is that of both, and so it is of prompts that vary."""
    rng, even = np.random.default_rng(0), np.full(2, 0.5)
    first = rng.choice([0.5, 1.0], size=20_000)
    mixed = np.stack([first, 1 - first], axis=-1)
    measured = bias(rng.multinomial(64, mixed) / 64).mean()
    assert measured > bias(mixed).mean() + 0.4 * fair_floor(64, 2)
    found, distance, _ = estimates(mixed, even)
    assert found == pytest.approx(bias(mixed).mean(), abs=0.004) and distance == pytest.approx(found / 2)
    for spread in (1.0, 2.0):
        first = rng.beta(spread, spread, size=20_000)
        varied = np.stack([first, 1 - first], axis=-1)
        assert estimates(varied, even)[0] == pytest.approx(bias(varied).mean(), abs=0.015)
    varied = rng.dirichlet(np.full(4, 2.0), size=20_000)
    found, distance, divergent = estimates(varied, np.full(4, 0.25))
    assert found == pytest.approx(bias(varied).mean(), abs=0.01)
    assert distance == pytest.approx(total_variation(varied, np.full(4, 0.25)).mean(), abs=0.015)
    assert divergent == pytest.approx(divergence(varied, np.full(4, 0.25)).mean(), abs=0.01)


def test_a_class_that_is_not_to_be_diverges_without_its_floor_too():
    shown = np.array([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]])
    found = divergence_without_floor(shown, np.array([0.7, 0.3, 0.0]), np.full((2, 1), 16))
    assert np.isinf(found[0]) and np.isfinite(found[1])
