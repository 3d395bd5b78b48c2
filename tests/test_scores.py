"""Scores of prompts, worked by hand: who is counted, jointly and alone, and what is said where nobody is."""

import json

import numpy as np
import pytest

from fairjax.evaluation.scores import Scoring, intervals, mean, without_errors
from fairjax.fairness import metrics
from fairjax.fairness.attributes import Attribute

GENDER, AGE, TONE = (
    Attribute("gender", ("female", "male")),
    Attribute("age", ("young", "old")),
    Attribute("tone", ("light", "medium", "deep")),
)
EVEN = np.full(4, 0.25)


def one_hot(classes, size, sure=0.9):
    rest = (1 - sure) / (size - 1)
    return np.where(np.eye(size)[list(classes)] == 1, sure, rest)


def test_a_prompts_scores_count_faces_alone():
    scoring = Scoring((GENDER, AGE, TONE), ("gender", "age"))
    probs = {
        "gender": one_hot([0, 0, 0, 1, 1], 2),
        "age": one_hot([0, 0, 1, 1, 1], 2, sure=0.7),
        "tone": one_hot([0, 0, 0, 0, 2], 3),
    }
    probs["gender"][4] = 0.4, 0.6  # the image without a face, of which nobody is unsure
    recognised = np.array([1, 1, 0, 0, 0], bool)
    found = scoring.of_prompt(probs, np.array([1, 1, 1, 1, 0], bool), EVEN, recognised)
    assert found["gender"]["frequencies"] == {"female": 0.75, "male": 0.25}
    assert (found["gender"]["bias"], found["age"]["bias"]) == pytest.approx((0.5, 0))
    assert found["tone"]["bias"] == pytest.approx(2 / 3) and "total_variation" not in found["tone"]
    joint = found["gender x age"]
    assert list(joint["frequencies"].items()) == [
        ("female young", 0.5), ("female old", 0.25), ("male young", 0.0), ("male old", 0.25),
    ]  # fmt: skip
    assert joint["bias"] == pytest.approx((0.25 + 0.5 + 0.25 + 0.25 + 0 + 0.25) / 6)
    assert joint["total_variation"] == pytest.approx(0.25)
    assert joint["divergence"] == pytest.approx(0.5 * np.log(2))
    assert found["low_confidence"] == 0.5  # of two attributes, the one that is 70% sure everywhere
    assert found["no_face"] == pytest.approx(0.2) and found["recognised"] == pytest.approx(0.4)


def test_a_target_over_three_attributes_is_counted_by_pairs_too():
    scoring = Scoring((GENDER, AGE, TONE), ("gender", "tone", "age"))
    assert scoring.counted() == [
        ("gender",), ("age",), ("tone",), ("gender", "tone"), ("gender", "age"), ("tone", "age"),
        ("gender", "tone", "age"),
    ]  # fmt: skip
    wished = np.arange(12) / 66  # gender x tone x age
    np.testing.assert_allclose(scoring.wished(("tone",), wished), np.array([14, 22, 30]) / 66)
    np.testing.assert_allclose(scoring.wished(("gender", "age"), wished), np.array([6, 9, 24, 27]) / 66)


def test_a_target_is_even_where_it_is_for_every_prompt():
    scoring = Scoring((GENDER, AGE), ("gender",))
    assert scoring.is_even(("gender",), np.array([[0.5, 0.5], [0.5, 0.5]])) is True
    assert scoring.is_even(("gender",), np.array([[0.9, 0.1], [0.1, 0.9]])) is False  # not on average alone
    assert scoring.is_even(("age",), np.array([[0.5, 0.5]])) is None


def test_thirds_that_are_rounded_up_are_a_distribution_all_the_same():
    """In float32 three thirds are more than 1, which is no probability: of one it has no floor."""
    third = np.float32(1 / 3)
    wished = np.array([third, 0, third, 0, third, 0])  # tone x gender: only women
    scoring = Scoring((TONE, GENDER), ("tone", "gender"))
    assert np.float64(third) * 3 > 1 and scoring.wished(("gender",), wished).tolist() == [1, 0]
    found = scoring.of_prompt({"tone": one_hot([0, 1], 3), "gender": one_hot([0, 0], 2)}, np.ones(2, bool), wished)
    assert found["gender"]["fair_total_variation"] == found["gender"]["fair_divergence"] == 0


def test_a_prompt_without_a_face_has_no_numbers_and_is_left_out_of_means():
    scoring = Scoring((GENDER,), ("gender",))
    half = np.full(2, 0.5)
    fair = scoring.of_prompt({"gender": one_hot([0, 1], 2)}, np.ones(2, bool), half)
    unfair = scoring.of_prompt({"gender": one_hot([0, 0], 2)}, np.ones(2, bool), half)
    faceless = scoring.of_prompt({"gender": one_hot([0, 0], 2)}, np.zeros(2, bool), half)
    assert faceless["gender"]["bias"] is None and faceless["low_confidence"] is None
    assert faceless["gender"]["frequencies"] == {"female": None, "male": None}
    means = mean([fair, unfair, faceless])
    assert (means["gender"]["bias"], means["gender"]["bias_std"]) == (0.5, 0.5)
    assert means["gender"]["frequencies"] == {"female": 0.75, "male": 0.25}
    assert means["no_face"] == pytest.approx(1 / 3)
    assert mean([faceless])["gender"]["bias"] is None
    json.dumps(mean([faceless]), allow_nan=False)


CHANCE = ["bias", "total_variation", "divergence"]


def of_tones(shares, num_images, rng, target, faces=1.0):
    """What is told of prompts of these shares [p, 3], with `faces` of their images showing one."""
    scoring, prompts = Scoring((TONE,), ("tone",)), []
    for row in shares:
        labels = rng.choice(3, p=row, size=num_images)
        prompts.append(scoring.of_prompt({"tone": one_hot(labels, 3)}, rng.random(num_images) < faces, target))
    return mean(prompts)["tone"] | intervals(scoring, prompts, np.tile(target, (len(prompts), 1)))["tone"]


def test_each_measure_has_an_interval_a_floor_and_a_value_without_it():
    target = np.array([0.6, 0.3, 0.1])
    found = of_tones(np.tile(target, (12, 1)), 32, np.random.default_rng(0), target)
    for name in CHANCE:
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high and 0 < found[f"fair_{name}"]
        least, most = found[f"{name}_without_floor_interval"]
        assert 0 <= least <= found[f"{name}_without_floor"] <= most and found[f"{name}_without_floor"] < found[name]
    assert found["fair_total_variation"] == pytest.approx(metrics.fair_total_variation(32, target))
    assert found["fair_divergence"] == pytest.approx(metrics.fair_divergence(32, target))
    assert found["divergence_infinite"] == 0
    json.dumps(found, allow_nan=False)


def test_each_class_has_an_interval_of_its_share():
    """That of a class which all show, or none, ends where that is no longer likely; more prompts narrow the others."""
    target, rng = np.full(3, 1 / 3), np.random.default_rng(0)
    widths = []
    for prompts in (6, 60):
        found = of_tones(np.tile([0.6, 0.4, 0.0], (prompts, 1)), 32, rng, target)
        ranges = found["frequencies_interval"]
        assert all(low <= found["frequencies"][name] <= high for name, (low, high) in ranges.items())
        assert ranges[TONE.classes[2]] == [0, pytest.approx(1 - 0.025 ** (1 / (32 * prompts)))]
        widths.append(np.ptp(ranges[TONE.classes[0]]))
        all_of_one = of_tones(np.tile([1.0, 0, 0], (prompts, 1)), 32, rng, target)["frequencies_interval"]
        assert all_of_one[TONE.classes[0]] == [pytest.approx(0.025 ** (1 / (32 * prompts))), 1]
    # drawn anew twice, images and prompts: 0.6 of 32 images varies by root(0.24 / 32) in each
    # and wider for six prompts, by root(6 / 5) of Student's 2.57 in place of 1.96
    expected = [2 * z * np.sqrt(2 * 0.24 / 32 / prompts) for prompts, z in ((6, 2.82), (60, 2.02))]
    assert widths == pytest.approx(expected, rel=0.3)


def test_no_interval_reaches_beyond_what_can_be():
    """Of few images, whose intervals are wide: a bias lies between 0 and, of three classes, two thirds."""
    target, rng, ends = np.full(3, 1 / 3), np.random.default_rng(0), []
    for shares in (target, [0.9, 0.05, 0.05]):
        for _ in range(20):
            found = of_tones(np.tile(shares, (2, 1)), 3, rng, target)
            ends += [found["bias_interval"], found["total_variation_interval"]]
    assert np.min(ends) >= 0 and np.max(ends) <= 2 / 3 + 1e-9


def test_a_prompt_with_one_face_says_nothing_of_a_bias_without_its_floor():
    """One man is what a fair model shows every other time: not known is not none."""
    scoring, half = Scoring((GENDER,), ("gender",)), np.full(2, 0.5)

    def found(*faces):
        men = {"gender": one_hot([1] * 8, 2)}
        prompts = [scoring.of_prompt(men, np.arange(8) < number, half) for number in faces]
        return intervals(scoring, prompts, np.tile(half, (len(prompts), 1)))["gender"]

    assert found(1, 1)["bias_without_floor"] is found(1, 1)["bias_without_floor_interval"] is None
    assert found(1, 1)["bias_interval"] == [1, 1]
    assert found(1, 8)["bias_without_floor"] == found(8)["bias_without_floor"] > 0.9


def test_images_without_a_face_do_not_lower_the_floor():
    """Half of the images show nobody: the floor is that of the other half, and a fair model is told to be fair."""
    even = np.full(3, 1 / 3)
    found = of_tones(np.tile(even, (200, 1)), 32, np.random.default_rng(0), even, faces=0.5)
    assert found["bias"] == pytest.approx(found["fair_bias"], rel=0.1)
    assert found["fair_bias"] > 1.3 * metrics.fair_floor(32, 3)
    assert found["fair_total_variation"] > 1.3 * metrics.fair_total_variation(32, even)
    for name in CHANCE:
        assert found[f"{name}_without_floor"] < 0.1 * found[f"fair_{name}"], name


def test_a_divergence_that_is_infinite_for_some_prompts_has_no_mean():
    """A model that breaks a target of none on most prompts must not look well by the few where it does not."""
    scoring, target = Scoring((TONE,), ("tone",)), np.array([0.5, 0.5, 0.0])
    wrong, right = [0, 1, 1, 2], [0, 0, 1, 1]
    prompts = [
        scoring.of_prompt({"tone": one_hot(labels, 3)}, np.ones(4, bool), target) for labels in (wrong, right, wrong)
    ]
    found = mean(prompts)["tone"] | intervals(scoring, prompts, np.tile(target, (3, 1)))["tone"]
    assert found["divergence_infinite"] == 2 and found["total_variation_interval"]
    for key in ("", "_interval", "_without_floor", "_without_floor_interval"):
        assert found[f"divergence{key}"] is None
    alone = mean(prompts[1:2])["tone"] | intervals(scoring, prompts[1:2], target[None])["tone"]
    assert alone["divergence"] == 0 and alone["divergence_infinite"] == 0
    only = np.array([1.0, 0, 0])
    twice = scoring.of_prompt({"tone": one_hot([0, 1, 2, 2], 3)}, np.ones(4, bool), only)
    assert intervals(scoring, [twice], only[None])["tone"]["divergence_infinite"] == 1  # of two classes: one prompt


def test_where_no_image_shows_a_face_every_measure_is_null():
    scoring = Scoring((TONE,), ("tone",))
    prompts = [scoring.of_prompt({"tone": one_hot([0, 1], 3)}, np.zeros(2, bool), np.full(3, 1 / 3))]
    found = mean(prompts)["tone"] | intervals(scoring, prompts, np.full((1, 3), 1 / 3))["tone"]
    for name in CHANCE:
        keys = (name, f"fair_{name}", f"{name}_interval", f"{name}_without_floor", f"{name}_without_floor_interval")
        assert [found[key] for key in keys] == [None] * 5
    assert found["frequencies_interval"] == dict.fromkeys(TONE.classes)


def test_shares_are_corrected_for_the_classifiers_errors():
    """Of 100 women it takes 90 for women, of 100 men 20: where it sees 60% women there are 4 in 7.

    Surely so where every prompt shows as many; less surely where one shows more than the other.
    """

    def found(*prompts):
        rows = [
            {"gender": {"counts": counts, "frequencies": {"female": counts[0] / 100, "male": counts[1] / 100}}}
            for counts in prompts
        ]
        corrected = without_errors(rows, "gender", np.array([[90, 10], [20, 80]]))["corrected"]
        (share, low, high), male = corrected["female"], corrected["male"]
        assert share == pytest.approx(4 / 7, abs=1e-3) and male[0] == pytest.approx(3 / 7, abs=1e-3)
        assert low < share < high and male[1] == pytest.approx(1 - high)
        return low, high

    low, high = found([60, 40], [60, 40])
    assert 0.35 < low and high < 0.8
    wider_low, wider_high = found([70, 30], [50, 50])
    assert wider_low < low - 0.05 and wider_high > high + 0.05
    nobody = [{"gender": {"counts": [0, 0], "frequencies": {"female": None, "male": None}}}]
    assert without_errors(nobody, "gender", np.eye(2)) == {}


@pytest.mark.parametrize("errors", [[[27, 0], [3, 0]], [[0, 0], [3, 9]], [[20, 10], [4, 2]]])
def test_errors_that_do_not_tell_the_classes_apart_correct_nothing(errors):
    """Whatever is seen would have been as likely of any shares: an estimate would be made up, one half each."""
    rows = [{"gender": {"counts": [80, 20], "frequencies": {"female": 0.8, "male": 0.2}}}]
    assert without_errors(rows, "gender", np.array(errors)) == {}
