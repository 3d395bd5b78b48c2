"""Metrics: golden numbers worked by hand, and the floor that an exactly fair model has."""

import numpy as np
import pytest

from fairjax.fairness.metrics import (
    bias,
    fair_floor,
    frequencies,
    prompt_metrics,
    spread,
    summary,
    total_variation,
)


def one_hot(classes, size, sure=0.9):
    rest = (1 - sure) / (size - 1)
    return np.where(np.eye(size)[list(classes)] == 1, sure, rest)


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


def test_a_prompts_metrics_count_faces_alone():
    probs = (one_hot([0, 0, 0, 1, 1], 2), one_hot([0, 0, 1, 1, 1], 2, sure=0.7))
    found = prompt_metrics(probs, np.array([1, 1, 1, 1, 0]), np.full(4, 0.25))
    np.testing.assert_allclose(found.shares[0], [0.75, 0.25])
    assert found.bias == pytest.approx((0.5, 0))
    assert found.low_confidence == (0, 1)
    np.testing.assert_allclose(found.joint_shares, [0.5, 0.25, 0, 0.25])
    assert found.joint_bias == pytest.approx((0.25 + 0.5 + 0.25 + 0.25 + 0 + 0.25) / 6)
    assert found.distance == pytest.approx(0.25)
    assert found.no_face == pytest.approx(0.2)


def test_summary_is_mean_and_deviation_over_prompts_with_faces():
    half = np.full(2, 0.5)
    fair = prompt_metrics((one_hot([0, 1], 2),), np.ones(2), half)
    unfair = prompt_metrics((one_hot([0, 0], 2),), np.ones(2), half)
    faceless = prompt_metrics((one_hot([0, 0], 2),), np.zeros(2), half)
    rows = summary([fair, unfair, faceless], ["gender"])
    assert (rows["bias/gender"].mean, rows["bias/gender"].std) == (0.5, 0.5)
    assert rows["no_face"].mean == pytest.approx(1 / 3)
    assert str(rows["bias/gender"]) == "0.500 ± 0.500"
    assert np.isnan(spread([float("nan")]).mean)


def test_fair_floor_equals_its_definition_and_golden_numbers():
    # For two classes n C(n - 1, (n - 1) // 2) / 2^(n - 1) / n, the mean distance of a random walk.
    assert fair_floor(64, 2) == pytest.approx(0.0993, abs=5e-5)
    assert fair_floor(16, 2) == pytest.approx(0.1964, abs=5e-5)
    assert fair_floor(1, 2) == pytest.approx(1)
    draws = np.random.default_rng(0).multinomial(80, [1 / 4] * 4, size=20_000) / 80
    simulated = np.mean([bias(shares) for shares in draws])
    assert fair_floor(80, 4) == pytest.approx(simulated, abs=5e-4)  # four standard errors
