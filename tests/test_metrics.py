"""Metrics: golden numbers worked by hand, and the floor that an exactly fair model has."""

import numpy as np
import pytest

from fairjax.fairness.metrics import bias, fair_floor, fair_total_variation, frequencies, total_variation


def test_bias_is_the_mean_difference_over_pairs_of_classes():
    assert bias(np.array([0.8, 0.2])) == pytest.approx(0.6)
    assert bias(np.array([1.0, 0, 0, 0])) == pytest.approx(0.5)
    assert bias(np.array([0.4, 0.3, 0.2, 0.1])) == pytest.approx((0.1 * 3 + 0.2 * 2 + 0.3) / 6)


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


def test_the_distance_that_an_exactly_fair_model_has_is_the_mean_over_draws():
    wished = np.array([0.75, 0.25, 0.0])
    draws = np.random.default_rng(0).multinomial(64, wished, size=20_000) / 64
    simulated = np.mean([total_variation(shares, wished) for shares in draws])
    assert fair_total_variation(64, wished) == pytest.approx(simulated, abs=1e-3)  # four standard errors
    assert fair_total_variation(64, np.array([0.5, 0.5])) == pytest.approx(fair_floor(64, 2) / 2)
