"""What a user may get wrong beyond single values, and what a kill may leave: one line, or nothing lost."""

import json
import struct

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from fairjax import parallel
from fairjax.config import Experiment, PromptSection
from fairjax.pipeline import Pipeline
from fairjax.portraits import captions, occupations
from fairjax.prompts import subjects
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning, Progress
from fairjax.training.log import Log


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained("portraits")


def test_what_is_asked_for_in_training_is_not_held_out_too():
    mine = subjects(PromptSection(subjects=("chef", occupations.HELD_OUT[3])))
    assert mine.trained == ("chef", occupations.HELD_OUT[3])
    assert mine.held_out == tuple(name for name in occupations.HELD_OUT if name != occupations.HELD_OUT[3])
    theirs = subjects(PromptSection(held_out=(occupations.TRAINED[0],)))
    assert theirs.trained == occupations.TRAINED[1:] and theirs.held_out == occupations.TRAINED[:1]
    seen = subjects(PromptSection(templates=captions.UNSEEN_TEMPLATES[:2]))
    assert seen.unseen_templates == captions.UNSEEN_TEMPLATES[2:]


def test_without_a_choice_the_prompts_are_those_of_the_embedded_world():
    assert subjects(PromptSection()) == (
        occupations.TRAINED, occupations.HELD_OUT, captions.FINETUNE_TEMPLATES, captions.UNSEEN_TEMPLATES,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subjects": ()}, "prompts.subjects is empty: name one or more, none of them of prompts.held_out"),
        ({"held_out": ()}, "prompts.held_out is empty: name one or more, none of them of prompts.subjects"),
        ({"templates": ()}, "prompts.templates is empty: name one or more, none of them of prompts.unseen_templates"),
        ({"subjects": occupations.HELD_OUT}, "prompts.held_out is empty: name one or more, none of them of"),
        ({"subjects": ("a", "b"), "held_out": ("c", "b")}, "prompts.subjects and prompts.held_out both have 'b'"),
        (
            {"templates": ("a {occupation}",), "unseen_templates": ("a {occupation}",)},
            "prompts.templates and prompts.unseen_templates both have 'a {occupation}'",
        ),
        ({"subjects": ("chef", " ")}, "prompts.subjects: ' ' names nobody"),
        ({"held_out": ("",)}, "prompts.held_out: '' names nobody"),
        ({"templates": ("a pilot",)}, "prompts.templates: 'a pilot' has no {occupation} in it"),
        (
            {"unseen_templates": ("a {occupation} {place}",)},
            "prompts.unseen_templates: 'a {occupation} {place}' has braces other than those of {occupation}",
        ),
        ({"templates": ("a {occupation} {",)}, "prompts.templates: 'a {occupation} {' has braces other than"),
        ({"templates": ("a {occupation!r} {occupation}",)}, "has braces other than"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_followed_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError) as refused:
        subjects(PromptSection(**fields))
    assert message in str(refused.value) and "\n" not in str(refused.value)


class Stop(Exception):
    """Stands for a kill."""


def test_every_step_of_a_checkpoint_is_told_before_it_is_saved(tmp_path, monkeypatch):
    """A kill between the two leaves a line that a resumed run drops; the other way round one would be lost."""
    small = {"training.steps": 2, "training.save_every": 2, "training.num_steps": (1, 1), "training.grad_steps": 1}
    finetuning = Finetuning(load(Experiment, None, small), parallel.mesh(1))
    start, images = finetuning.initial(), jnp.zeros((32, 8, 8, 3))
    monkeypatch.setattr(finetuning, "_program", lambda *_: (start, {"loss": jnp.zeros(())}, images))
    told = []

    class Recorded:
        latest = staticmethod(lambda: None)
        save = staticmethod(lambda step, state: told.append(("saved", step)))

    finetuning.run(Recorded(), lambda progress: told.append(("told", progress.step)))
    assert told == [("told", 1), ("told", 2), ("saved", 2)]


def lines_after(folder, text, start):
    (folder / "log.jsonl").write_text(text)
    log = Log(folder, images_every=100, start=start)
    log(Progress(start + 1, 100, {"loss": 1.0}, [], lambda: None))
    log.close()
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("steps", "half_a_line"),
    [([1, 2, 3, 4], ""), ([1, 3, 4], ""), ([1, 2, 3], '{"step": 4, "lo'), ([1, 2, 3, 4, 5, 6], "")],
)
def test_a_resumed_log_goes_on_after_the_checkpoints_step_whatever_lines_it_has(tmp_path, steps, half_a_line):
    text = "".join(json.dumps({"step": step}) + "\n" for step in steps) + half_a_line
    kept = [step for step in steps if step <= 3]
    assert lines_after(tmp_path, text, 3) == [*kept, 4]


def events(folder):
    """The records of TensorBoard's files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    for file in sorted(folder.glob("events*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_is_told_to_forget_the_steps_after_the_checkpoint(tmp_path):
    lines_after(tmp_path, "", 3)
    (restart,) = [event for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert restart.step == 4 and restart.session_log.status == restart.session_log.START
