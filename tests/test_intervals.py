"""Intervals hold what they say, and what a classifier gets wrong is taken out of the shares."""

import numpy as np
import pytest
from scipy.stats import norm

from fairjax.fairness.intervals import bootstrap, corrected, corrected_interval, ends, paired
from fairjax.fairness.metrics import (
    bias,
    bias_without_floor,
    divergence,
    divergence_without_floor,
    total_variation,
    total_variation_without_floor,
)


def test_divergence_from_a_target():
    half, shown = np.array([0.5, 0.5]), np.array([0.75, 0.25])
    assert divergence(half, half) == 0
    assert divergence(shown, half) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert divergence(half, np.array([1.0, 0.0])) == np.inf


def test_a_bootstrap_interval_holds_the_expected_measurement_as_often_as_it_says():
    """Of 300 evaluations of 20 prompts by 48 images, drawn from prompts whose skews differ: 95%, give or take 3."""
    rng, draws = np.random.default_rng(1), 300
    skews = rng.beta(2, 2, size=200_000)
    pool = rng.binomial(48, skews) / 48
    expected = bias(np.stack([pool, 1 - pool], -1)).mean()
    held = 0
    for _ in range(draws):
        women = rng.binomial(48, rng.beta(2, 2, size=20))
        interval = bootstrap(np.stack([women, 48 - women], 1), rng, draws=400).interval(bias)
        assert interval.low < interval.value < interval.high
        held += interval.low <= expected <= interval.high
    assert held / draws == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("prompts", [4, 8])
def test_intervals_over_few_prompts_hold_what_they_say(prompts):
    """Of 300 evaluations of 64 images a prompt, the share of a class: 95%, give or take 4 (0.80 and 0.89 before)."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(300):
        women = rng.binomial(64, rng.beta(2, 2, size=prompts))
        drawn = bootstrap(np.stack([women, 64 - women], 1), rng, draws=1000)
        interval = drawn.interval(lambda shares: shares[..., 0])
        held += interval.low <= 0.5 <= interval.high
    assert held / 300 >= 0.91


@pytest.mark.parametrize(
    ("prompts", "deviations"), [(2, 12.706 * 2**0.5), (4, 3.182 * (4 / 3) ** 0.5), (60, 2.001 * (60 / 59) ** 0.5)]
)
def test_the_ends_are_as_far_out_as_students_t_for_the_deviation_of_so_few(prompts, deviations):
    """Its 97.5% points are tabled; means that are spread evenly over [0, 1] are at each percentile what that is."""
    tail = norm.cdf(-deviations)
    found = ends(np.linspace(0, 1, 1001), prompts, 0.95)
    np.testing.assert_allclose(found, [tail, 1 - tail], rtol=0.01, atol=0)
    np.testing.assert_allclose(ends(np.linspace(0, 1, 1001), 1, 0.95), [0.025, 0.975])


@pytest.mark.parametrize("varied", [False, True])
def test_intervals_without_floors_hold_the_truth(varied):
    """Of 200 evaluations of 20 prompts by 32 images: of a model that meets its target, and one whose prompts vary."""
    rng, target, images = np.random.default_rng(3), np.array([0.6, 0.3, 0.1]), np.full((20, 1), 32)
    wished = np.tile(target, (20, 1))
    many = rng.dirichlet(2 * np.ones(3), size=50_000) if varied else target[None]
    about = {bias_without_floor: [], total_variation_without_floor: [wished], divergence_without_floor: [wished]}
    truth = [bias(many).mean(), total_variation(many, target).mean(), divergence(many, target).mean()]
    held = np.zeros(3)
    for _ in range(200):
        counts = rng.multinomial(32, rng.dirichlet(2 * np.ones(3), size=20) if varied else wished)
        for number, (statistic, told) in enumerate(about.items()):
            interval = bootstrap(counts, rng, draws=300).interval(statistic, *told, images)
            held[number] += interval.low <= truth[number] <= interval.high
    assert (held / 200 >= 0.9).all(), held / 200


def test_these_prompts_alone_are_surer_than_all_like_them():
    counts = np.array([[40, 8], [8, 40], [24, 24], [44, 4]])
    both = [bootstrap(counts, np.random.default_rng(0), prompts=prompts).interval(bias) for prompts in (True, False)]
    widths = [interval.high - interval.low for interval in both]
    assert widths[1] < 0.7 * widths[0] and both[0].value == both[1].value == bias(counts / 48).mean()
    empty = bootstrap(np.array([[0, 0], [5, 5]]), np.random.default_rng(0)).interval(bias)
    assert empty.value == 0  # the prompt without a face is left out


def test_shares_are_corrected_for_what_classes_are_taken_for():
    confusion = np.array([[90, 10], [30, 70]])
    seen = np.array([0.2, 0.8]) @ (confusion / 100)
    np.testing.assert_allclose(corrected(seen, confusion), [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(corrected(np.array([3, 1]), np.eye(2) * 50), [0.75, 0.25], atol=1e-9)
    assert corrected(np.array([95, 5]), confusion)[0] == pytest.approx(1, abs=1e-3)  # more than any mixture gives


def test_the_corrected_interval_holds_the_truth_as_often_as_it_says():
    """200 evaluations of 400 images by a classifier of which 3 classes were each judged on 300 pictures."""
    rng, truth = np.random.default_rng(2), np.array([0.5, 0.3, 0.2])
    taken_for = np.array([[0.9, 0.07, 0.03], [0.1, 0.85, 0.05], [0.05, 0.15, 0.8]])
    held = np.zeros(3)
    for _ in range(200):
        confusion = np.stack([rng.multinomial(300, row) for row in taken_for])
        counts = rng.multinomial(400, truth @ taken_for)
        shares, low, high = corrected_interval(counts, confusion, rng, draws=200)
        assert ((low <= shares) & (shares <= high)).all()
        held += (low <= truth) & (truth <= high)
    assert (held / 200 >= 0.9).all(), held / 200


def labelled(rng, shares, images):
    """[p, n] classes drawn from shares [p, 2]."""
    return (rng.random((len(shares), images)) < shares[:, 1:]).astype(int)


def test_a_paired_difference_is_found_where_there_is_one_and_nowhere_else():
    """Models that are alike are told apart one time in twenty, as p says; a fair one from a skewed one at once."""
    rng, alike = np.random.default_rng(0), []
    for _ in range(40):
        lead = rng.beta(2, 2, size=20)
        shares = np.stack([lead, 1 - lead], axis=1)
        first, second = (labelled(rng, shares, 32) for _ in range(2))
        alike.append(paired(first, second, 2, bias, rng, draws=50, flips=400))
    assert np.mean([found.p_value < 0.05 for found in alike]) <= 0.125  # of 40: more than 5 by chance once in 70
    assert np.mean([found.low <= 0 <= found.high for found in alike]) >= 0.85
    skewed, fair = np.tile([0.9, 0.1], (20, 1)), np.full((20, 2), 0.5)
    first, second = labelled(rng, skewed, 32), labelled(rng, fair, 32)
    found = paired(first, second, 2, bias, rng)
    expected = np.mean([abs(1 - 2 * row.mean()) for row in second]) - np.mean(
        [abs(1 - 2 * row.mean()) for row in first]
    )
    assert found.value == pytest.approx(expected) and found.low < found.value < found.high < 0
    assert found.p_value < 0.001


def test_the_noise_that_both_models_share_does_not_blur_their_difference():
    rng = np.random.default_rng(0)
    first = labelled(rng, np.tile([0.8, 0.2], (10, 1)), 40)
    second = first.copy()
    second[:, :2] = 1 - second[:, :2]  # two pictures of each prompt are otherwise
    shared = paired(first, second, 2, bias, rng)
    apart = paired(first, rng.permuted(second, axis=1), 2, bias, rng)
    assert shared.value == pytest.approx(apart.value) and shared.high - shared.low < 0.7 * (apart.high - apart.low)


def test_a_paired_interval_is_over_prompts_too():
    """Images of a prompt are all alike here: what is uncertain is which prompts they are."""
    first = np.zeros((50, 8), int)
    second = np.repeat(np.arange(50) % 2, 8).reshape(50, 8)
    found = paired(first, second, 2, lambda shares: shares[..., 1], np.random.default_rng(0))
    apart = 2.01 * np.sqrt(0.25 / 49)
    np.testing.assert_allclose([found.value, found.low, found.high], [0.5, 0.5 - apart, 0.5 + apart], atol=0.02)


def test_a_paired_interval_is_about_the_difference_that_was_measured():
    """Images drawn anew of an even model are less even, of one that shows a single class they are not."""
    first, second = np.zeros((20, 4), int), np.tile([0, 0, 1, 1], (20, 1))
    found = paired(first, second, 2, bias, np.random.default_rng(0), flips=99)
    assert found.value == -1 and found.low < -1 < found.high
    assert found.p_value == 1 / 100  # no exchange of 99 makes as large a one, and none is no chance at all


def test_a_paired_difference_leaves_out_images_and_prompts_without_a_face():
    rng = np.random.default_rng(0)
    first, second = np.array([[0, 0, -1, 1], [1, 1, 1, 1], [0, 1, 0, 1]]), np.array([[0, -1, 1, -1], [-1] * 4, [1] * 4])
    found = paired(first, second, 2, bias, rng, draws=10, flips=10)
    assert found.value == pytest.approx(((0 + 1) - (1 / 3 + 0)) / 2)  # the second prompt is seen by one only
    assert all(np.isnan(paired(first[1:2], second[1:2], 2, bias, rng, draws=10, flips=10)))


def test_prompts_with_few_faces_widen_no_paired_difference():
    """A draw of their images without any face is no draw of a fair model."""
    rng = np.random.default_rng(0)
    first, second = np.full((10, 8), -1), np.full((10, 8), -1)
    first[:, 0], second[:, 3] = np.arange(10) % 2, np.arange(10) % 2
    found = paired(first, second, 2, bias, rng)
    assert found.value == pytest.approx(0) and found.high - found.low < 1e-12


def test_prompts_with_few_faces_count_as_much_in_corrected_shares():
    """Of a classifier that makes no mistakes they are the shares that stand beside them, the means over prompts."""
    rows = np.array([[60, 0]] * 6 + [[0, 6]] * 6)
    share, low, high = corrected_interval(rows, 1e6 * np.eye(2), np.random.default_rng(0))
    np.testing.assert_allclose(share, [0.5, 0.5], atol=1e-6)
    assert low[0] < 0.3 and high[0] > 0.7


def test_few_pictures_without_a_mistake_do_not_make_a_classifier_sure():
    """One that errs now and then may well have made none in ten of each class."""
    shares = [
        corrected_interval(np.array([[3000, 3000]]), count * np.eye(2), np.random.default_rng(0))
        for count in (10, 10_000)
    ]
    few, many = (high[0] - low[0] for _, low, high in shares)
    assert few > 0.1 and many == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 6000), rel=0.2)


def test_the_corrected_interval_is_over_prompts_too():
    """Of 50 prompts, half of which show one class alone, the share is as uncertain as it is uncorrected."""
    rows = np.array([[64, 0]] * 25 + [[0, 64]] * 25)
    _, low, high = corrected_interval(rows, 1e6 * np.eye(2), np.random.default_rng(0))
    apart = 1.96 * np.sqrt(0.25 / 50)
    np.testing.assert_allclose([low[0], high[0]], [0.5 - apart, 0.5 + apart], atol=0.02)
