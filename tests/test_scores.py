"""Scores of prompts, worked by hand: who is counted, jointly and alone, and what is said where nobody is."""

import json

import numpy as np
import pytest

from fairjax.evaluation.scores import Scoring, mean, without_errors
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


def test_shares_are_corrected_for_the_classifiers_errors():
    """Of 100 women it takes 90 for women, of 100 men 20: where it sees 60% women there are 4 in 7."""
    prompts = [
        {"gender": {"counts": counts, "frequencies": {"female": counts[0] / 100, "male": counts[1] / 100}}}
        for counts in ([70, 30], [50, 50])
    ]
    found = without_errors(prompts, "gender", np.array([[90, 10], [20, 80]]))["corrected"]
    (share, low, high), male = found["female"], found["male"]
    assert share == pytest.approx(4 / 7, abs=1e-3) and male[0] == pytest.approx(3 / 7, abs=1e-3)
    assert 0.4 < low < share < high < 0.75 and male[1] == pytest.approx(1 - high)
    nobody = [{"gender": {"counts": [0, 0], "frequencies": {"female": None, "male": None}}}]
    assert without_errors(nobody, "gender", np.eye(2)) == {}
