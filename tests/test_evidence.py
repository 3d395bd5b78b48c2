"""The studies of `benchmarks/evidence.py` are runs that exist, and are told as they were measured."""

import shlex
import sys

import numpy as np
import pytest

from benchmarks import evidence
from fairjax.config import Experiment
from fairjax.schema import parse


@pytest.mark.parametrize("name", evidence.STUDIES)
def test_every_variant_is_a_command_line_that_train_takes(name, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(evidence.subprocess, "run", lambda command, **options: said.append(command))
    study = evidence.STUDIES[name]
    done = evidence.runs(study, range(2), tmp_path)
    for run in done:
        evidence.train(run, 7, {"training.prompts_per_step": 3})
    configs = [
        parse(Experiment, words[2:], "train.py", "", lambda parser: parser.add_argument("--resume"))[0]
        for words in (without_resume(command) for command in said)
    ]
    assert len({config.output for config in configs}) == len(done) == 2 * len(study.variants)
    for run, config in zip(done, configs, strict=True):
        assert (config.seed, config.training.prompts_per_step) == (run.seed, 3)
        assert config.training.steps == round(7 * evidence.PACES.get(run.finetuning, 1))
    told = [config.model_dump(exclude={"output": True, "seed": True}) for config in configs[: len(study.variants)]]
    assert all(a != b for i, a in enumerate(told) for b in told[:i]), "two variants are the same finetuning"


@pytest.mark.parametrize(("finetuning", "threshold"), [("default", 0.4), ("no-threshold", 1), ("sets-100", 0.3)])
def test_a_study_has_the_default_of_when_it_was_made_where_its_configuration_says_nothing(
    finetuning, threshold, tmp_path, monkeypatch
):
    """docs/studies.md tells of 0.3 where gender and skin tone are asked for together."""
    said = []
    monkeypatch.setattr(evidence.subprocess, "run", lambda command, **options: said.append(command))
    evidence.train(evidence.Run("", finetuning, 0, tmp_path / "run"), 7, {})
    words = without_resume(said[0])
    config, _ = parse(Experiment, words[2:], "train.py", "")
    assert (config.loss.threshold, config.loss.other_attributes, config.prompts.nobody_share) == (threshold, 0, 0)


def without_resume(command):
    assert command[0] == sys.executable and "--resume" in command, shlex.join(command)
    return [word for word in command if word != "--resume"]


def test_a_run_that_is_done_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence.subprocess, "run", lambda *args, **options: pytest.fail("trained again"))
    study = evidence.STUDIES["sets"]
    run = evidence.runs(study, range(1), tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "results.json").write_text("{}")
    evidence.train(run, 7, {})


def measured(bias, share):
    """A column of results.json, of one kind of prompts."""
    return {"gender": {"bias": bias, "total_variation": bias / 2, "frequencies": {"female": share, "male": 1 - share}}}


def results(columns):
    """Two trained prompts that wish for three quarters and a quarter of women, and two held out with three quarters."""
    prompts = [
        {"held_out": held_out, "wished": {"gender": {"female": wish, "male": 1 - wish}}}
        | {name: measured(bias[i], share[i]) for name, (bias, share) in columns.items()}
        for i, (held_out, wish) in enumerate([(False, 0.75), (False, 0.25), (True, 0.75), (True, 0.75)])
    ]
    means = {"recognised": 0.9, "low_confidence": 0.1}
    kept = {
        kind: {"similarity": {name: 0.8 for name in columns if name != "before"}} for kind in ("trained", "held_out")
    }
    return {
        "per_prompt": prompts, "targets": {"gender": {}}, "preservation": {"clip": kept}, "columns": columns,
        **{name: {"trained": means, "held_out": means} for name in columns},
    }  # fmt: skip


def test_distances_are_means_over_seeds_and_intervals_are_over_prompts():
    found = results({"a": ([0.4, 0.8, 0, 0], [0, 0, 0, 0]), "b": ([0.2, 0.6, 0, 0], [0, 0, 0, 0])})
    side = evidence.shown(found, ["a", "b"], held_out=False)
    assert side.distance == pytest.approx((0.3 + 0.7) / 4)  # half of the bias: the target is not even
    assert side.by_seed == pytest.approx([0.3, 0.2])
    assert side.interval == pytest.approx((0.15, 0.35))  # that of two prompts: one of them, drawn twice
    assert (side.recognised, side.uncertain, side.similarity) == (0.9, 0.1, 0.8)


def test_shares_are_told_by_what_was_wished_for():
    found = results({"a": ([0] * 4, [0.7, 0.2, 0.6, 0.8]), "b": ([0] * 4, [0.9, 0.4, 0.6, 0.8])})
    told = [(share.kind, share.name, share.wished, share.measured) for share in evidence.shares(found, ["a", "b"])]
    assert told == [
        ("trained", "female", 0.75, pytest.approx(0.8)), ("trained", "female", 0.25, pytest.approx(0.3)),
        ("held out", "female", 0.75, pytest.approx(0.7)),
    ]  # fmt: skip


def test_a_curve_is_over_the_time_of_training_without_compilation(tmp_path):
    run = evidence.Run("all", "adjusted", 0, tmp_path)
    rows = ['{"seconds": 60.0, "loss/fairness": 3.0}', '{"seconds": 2.0}', '{"seconds": 2.0, "loss/fairness": 1.0}']
    (tmp_path / "log.jsonl").write_text("\n".join(rows) + "\n")
    went = evidence.curve([run])
    np.testing.assert_allclose(went.seconds, [2, 4, 6])
    np.testing.assert_allclose(went.loss, [3, 3, 2])  # a step that reached for nothing counts for nothing


def test_of_pictures_of_nobody_the_faces_in_them_are_told():
    study = evidence.Study("", {"never": "default", "often": "nobody-tenth"}, nobody=True)
    done = [evidence.Run(variant, "", seed, None) for seed in range(2) for variant in study.variants]
    found = results({name: ([0] * 4, [0] * 4) for name in ("before", "a", "b", "c", "d")})
    found["nobody"] = {
        "faces": {"before": 0.01, "a": 0.3, "b": 0.02, "c": 0.1, "d": 0.04},
        "preservation": {"clip": {"similarity": {"a": 0.6, "b": 0.9, "c": 0.7, "d": 0.8}}},
    }  # fmt: skip
    rows = evidence._of_nobody(study, done, found)[2:]
    assert rows == [
        "| before | 1.0% | 1.0% | 1.000 |", "| never | 20.0% | 30.0%, 10.0% | 0.650 |",
        "| often | 3.0% | 2.0%, 4.0% | 0.850 |",
    ]  # fmt: skip
