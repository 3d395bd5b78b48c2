"""Mistakes that are told before anything long has run, each in a line that names the field."""

import pytest

import train as train_program
from fairjax import parallel
from fairjax.checkpoints import Checkpoints
from fairjax.config import Experiment, PromptSection
from fairjax.portraits import occupations
from fairjax.prompts import subjects
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss.factor1", "{gendr: 0.5}"], "loss.factor1: no attribute 'gendr'; did you mean 'gender'?"),
        (["--loss.factor2", "{gender: 1.5}"], "loss.factor2.gender"),
        (["--training.betas", "[0.9, 1.5]"], "training.betas"),
        (["--prompts.held_out", "[]"], "prompts.held_out is empty"),
        (["--prompts.subjects", "[chef]", "--prompts.held_out", "[chef]"], "both have 'chef'"),
        (["--prompts.templates", "['a {occupation} {place}']"], "prompts.templates"),
        (["--judges", "nowhere/at/all"], "judges = 'nowhere/at/all'"),
        (["--target.prompts", "{chef: [0.5, 0.6]}"], "target.prompts"),
        (["--target.marginals", "{gender: [0.5, 0.6]}"], "target.marginals"),
    ],
)
def test_a_mistake_names_its_field(arguments, message, capsys, tmp_path):
    assert train_program.main([*arguments, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


def test_a_subject_of_the_users_own_list_is_not_measured_as_held_out():
    held_out = occupations.HELD_OUT[0]
    chosen = subjects(PromptSection(subjects=(held_out, occupations.TRAINED[0])))
    assert held_out not in chosen.held_out and len(chosen.held_out) == len(occupations.HELD_OUT) - 1


def test_a_checkpoint_of_another_adapter_is_refused_in_one_line(tmp_path):
    rank = lambda r: Finetuning(load(Experiment, None, {"adapter.rank": r}), parallel.mesh(1))  # noqa: E731
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, rank(2).initial())
    with pytest.raises(ValueError, match="checkpoint 3 in .* does not fit") as error:
        rank(4).start(checkpoints)
    assert "\n" not in str(error.value)
    assert rank(2).start(checkpoints) == 3
    checkpoints.close()
