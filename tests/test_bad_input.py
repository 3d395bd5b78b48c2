"""What a user may get wrong beyond single values, and what a kill may leave: one line, or nothing lost."""

import io
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from running import full_disk
from small_world import arguments, fields
from tensorboardX.proto.event_pb2 import Event

import train as train_program
from fairjax import parallel
from fairjax.api import finetune
from fairjax.checkpoints import Checkpoints
from fairjax.config import Experiment, PromptSection
from fairjax.convert import adapters
from fairjax.convert.bundles import load_adapter
from fairjax.faces.classifier import Classifier
from fairjax.faces.judges import Judge, check_agreement
from fairjax.faces.located import FixedBox
from fairjax.fairness import transport
from fairjax.models.mobilenet import MobileNetV3Config
from fairjax.pipeline import Pipeline
from fairjax.portraits import captions, occupations
from fairjax.program import UserError
from fairjax.prompts import Rows, subjects
from fairjax.schema import dump, load, read_yaml
from fairjax.training import state as states
from fairjax.training.finetuning import Finetuning, StepReport
from fairjax.training.log import Log
from fairjax.training.resuming import differences
from fairjax.training.run import check


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
    assert seen.sources[0].held_out.templates == captions.UNSEEN_TEMPLATES[2:]


def test_without_a_choice_the_prompts_are_those_of_the_embedded_world():
    (source,) = subjects(PromptSection()).sources
    assert source.trained == Rows(occupations.TRAINED, captions.FINETUNE_TEMPLATES)
    assert source.held_out == Rows(occupations.HELD_OUT, captions.UNSEEN_TEMPLATES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subjects": ()}, "prompts.subjects is empty: name one or more, none of them of prompts.held_out"),
        ({"held_out": ()}, "prompts.held_out is empty: name one or more, none of them of prompts.subjects"),
        ({"templates": ()}, "prompts.templates is empty: name one or more, none of them of prompts.unseen_templates"),
        ({"subjects": occupations.HELD_OUT}, "prompts.held_out is empty: name one or more, none of them of"),
        ({"subjects": ("a", "B"), "held_out": ("c", "b")}, "prompts.subjects and prompts.held_out both have 'b'"),
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


@pytest.mark.parametrize(
    ("tokens", "width", "message"),
    [(5, 768, "the soft tokens are 768 wide"), (31, 128, "31 soft tokens do not fit")],
)
def test_a_soft_prompt_of_another_model_is_refused_when_it_is_read(pipeline, tmp_path, tokens, width, message):
    file = tmp_path / adapters.EMBEDDINGS_FILE
    adapters.save_soft_prompt(file, {"embedding": np.zeros((tokens, width), np.float32)})
    with pytest.raises(ValueError) as refused:
        load_adapter(tmp_path, pipeline)
    assert str(refused.value).startswith(f"{file}: made for another model: {message}")
    assert "\n" not in str(refused.value)


def bundle_state(width=2, kind="unet", layers=("layer.0",)):
    factors = {name: {"down": jnp.ones((width, 1)), "up": jnp.zeros((1, width))} for name in layers}
    return states.initial({kind: factors}, Experiment().training)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (bundle_state(width=3), "bundle.unet.layer.0.down is (2, 1) in it, should be (3, 1)"),
        (bundle_state(kind="text_encoder"), "bundle.text_encoder.layer.0.down is absent in it, should be (2, 1)"),
        (bundle_state(layers=()), "bundle.unet.layer.0.down is (2, 1) in it, should be absent"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(tmp_path, other, difference):
    """Read by a manager of its own, as a resumed run does."""
    saved = bundle_state()
    for work in (lambda kept: kept.save(7, saved), lambda kept: check_refusal(kept, other, difference, tmp_path)):
        kept = Checkpoints(tmp_path / "checkpoints")
        work(kept)
        kept.close()


def check_refusal(kept, other, difference, folder):
    for refuse in (kept.check, kept.restore):
        with pytest.raises(ValueError) as refused:
            refuse(7, other)
        assert "\n" not in str(refused.value) and difference in str(refused.value)
        assert str(refused.value).startswith(f"checkpoint 7 in {folder / 'checkpoints'} does not fit: ")
    restored = kept.restore(7, bundle_state())
    assert jax.tree.structure(restored) == jax.tree.structure(bundle_state())


def foreign_run(folder):
    """A run folder that lost its `config.yaml`, of another adapter."""
    kept = Checkpoints(folder / "checkpoints")
    kept.save(2, bundle_state(kind="text_encoder"))
    kept.close()


def test_a_run_folder_without_its_configuration_is_not_continued_unasked_nor_by_another_run(tmp_path, mistake):
    run = tmp_path / "run"
    foreign_run(run)
    for asked in ([], ["--dry-run"]):
        assert "holds a run already: add --resume" in mistake(train_program.main, "--output", run, *asked)
    error = mistake(train_program.main, "--output", run, "--resume")
    assert "checkpoint 2 in" in error and "bundle.text_encoder" in error
    assert {path.name for path in run.iterdir()} == {"checkpoints", parallel.LOCK}  # nothing was measured or written


def test_fewer_steps_than_a_run_has_are_told_before_anything_is_measured(tmp_path, capsys):
    run = tmp_path / "run"
    foreign_run(run)
    assert train_program.main(["--output", str(run), "--resume", "--training.steps", "1"]) == 2
    assert "training.steps = 1, but the run has 2 steps already" in capsys.readouterr().err
    assert not (run / "config.yaml").exists()


def test_checkpoints_of_another_adapter_are_refused_from_python_too(tmp_path):
    foreign_run(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint 2 in .* does not fit: bundle\.text_encoder"):
        finetune(Experiment(), checkpoints=tmp_path / "checkpoints")


def test_every_step_of_a_checkpoint_is_told_before_it_is_saved(monkeypatch):
    """A kill between the two leaves a line that a resumed run drops; the other way round one would be lost."""
    small = {"training.steps": 2, "training.save_every": 2, "training.num_steps": (1, 1), "training.grad_steps": 1}
    finetuning = Finetuning(load(Experiment, None, small), parallel.mesh(1))
    start, images, zero = finetuning.initial(), jnp.zeros((32, 8, 8, 3)), jnp.zeros(())
    step = lambda *_: (start, {"loss": zero, "gradient_norm": zero}, images)  # noqa: E731
    monkeypatch.setattr(finetuning, "compiled", lambda: step)
    told = []

    class Recorded:
        latest = staticmethod(lambda: told[-1][1] if told and told[-1][0] == "saved" else None)
        finish = staticmethod(lambda: None)
        save = staticmethod(lambda step, state: told.append(("saved", step)))

    finetuning.run(Recorded(), lambda progress: told.append(("told", progress.step)))
    assert told == [("told", 1), ("told", 2), ("saved", 2)]


def lines_after(folder, text, start):
    (folder / "log.jsonl").write_text(text)
    log = Log(folder, start=start, images=8)
    log(StepReport(start + 1, 100, {"loss": 1.0}, [], lambda: None), None)
    log.close()
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("steps", "half_a_line"),
    [([1, 2, 3, 4], ""), ([1, 3, 4], ""), ([1, 2, 3], '{"step": 4, "lo'), ([1, 2, 3, 4, 5, 6], ""), ([1, 2], "5\n{}")],
)
def test_a_resumed_log_goes_on_after_the_checkpoints_step_whatever_lines_it_has(tmp_path, steps, half_a_line):
    text = "".join(json.dumps({"step": step}) + "\n" for step in steps) + half_a_line
    kept = [step for step in steps if step <= 3]
    assert lines_after(tmp_path, text, 3) == [*kept, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.faults("a full disk, logging", lost="TensorBoard's part, which is told")
def test_a_log_that_a_full_disk_does_not_take_is_written_when_there_is_room(tmp_path, capsys):
    """A warning each, and no step waits for TensorBoard, whose thread has died of it."""
    log = Log(tmp_path, start=0, images=8)
    writer = log._board._get_file_writer().event_writer
    writer._worker._next_flush_time = writer._worker._flush_secs = 0  # at once
    with full_disk():
        for step in range(1, 5):
            log(StepReport(step, 100, {"loss": 1.0}, [], lambda: None), None)
            writer._worker.join(timeout=5 if step == 2 else 0)
    log(StepReport(5, 100, {"loss": 1.0}, [], lambda: None), None)
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        f"warning: {tmp_path}/log.jsonl cannot be written: file too large",
        "warning: TensorBoard gets no more: its files could not be written",
    ]


def test_a_line_of_the_log_says_how_the_machine_does(tmp_path):
    lines_after(tmp_path, "", 0)
    (row,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert row["devices"] == 8 and row["memory"] > 2**20  # of eight devices of a CPU, the process's
    assert row["images_per_second"] > 0 and row["seconds"] >= 0


@pytest.mark.faults("a file where TensorBoard's folder should be", lost="TensorBoard's part, which is told")
def test_where_tensorboard_cannot_write_a_run_goes_on_without(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("")
    assert lines_after(tmp_path, "", 0) == [1]
    error = capsys.readouterr().err
    assert error.startswith("warning: TensorBoard gets nothing: ") and error.count("\n") == 1


def test_a_refusal_without_a_number_of_the_system_is_told_in_its_own_words(tmp_path, monkeypatch, capsys):
    """As of what is not the system's own: `OSError("...")` has no strerror, and the run was ended by the warning."""

    def refusing(*args, **kwargs):
        raise OSError("the bucket is locked")

    monkeypatch.setattr("fairjax.training.log.SummaryWriter", refusing)
    assert lines_after(tmp_path, "", 0) == [1]
    assert "cannot be written: the bucket is locked" in capsys.readouterr().err


def events(folder):
    """The records of TensorBoard's files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    for file in sorted(folder.glob("events*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_has_the_scalars_and_the_images_of_a_run(tmp_path):
    log = Log(tmp_path, start=0, images=8)
    for step, pictures in ((1, None), (2, np.full((2, 3, 8, 10, 3), 2, np.uint8))):  # two prompts, three images of each
        log(StepReport(step, 2, {"loss": 1 / step, "bias/gender": 0.5}, [], lambda: None), pictures)
    log.close()
    values = [(event.step, value) for event in events(tmp_path / "tensorboard") for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value for step, value in values if value.HasField("simple_value")}
    assert scalars == {(1, "loss"): 1, (2, "loss"): 0.5, (1, "bias/gender"): 0.5, (2, "bias/gender"): 0.5}
    ((step, picture),) = [(step, value.image) for step, value in values if value.HasField("image")]
    pixels = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert step == 2 and pixels.shape == (2 * 8, 3 * 10, 3) and (pixels == 2).all()


def test_what_differs_from_the_run_that_is_continued_is_named():
    """Whichever of the two says it, and inside a mapping of files too."""
    plain = load(Experiment, None, {})
    heads = {"portraits/classifier": ("gender",)}
    for name, value in (("judges.heads", heads), ("target.prompts", {"chef": (0.5, 0.5)}), ("loss.face", 0.5)):
        changed = load(Experiment, None, {name: value})
        for one, other in ((plain, changed), (changed, plain)):
            (told,) = differences(one, other)
            assert told.startswith(f"{name} = ") and ", but the run has " in told
    more_of_the_same = {"output": "moved", "training.steps": 7, "training.save_every": 3, "training.microbatch": 2}
    assert differences(plain, load(Experiment, None, more_of_the_same)) == []


def test_a_run_of_a_version_without_some_field_does_not_go_on_by_todays_default(small_world, tmp_path, capsys):
    """Its numbers would be others, and nothing would say so: the default would be compared with itself."""
    path = tmp_path / "config.yaml"
    path.write_text(dump(load(Experiment, None, fields(small_world) | {"output": str(tmp_path)})))
    check(load(Experiment, path), tmp_path, resume=True)
    older = read_yaml(path)
    del older["loss"]["other_attributes"], older["validation"], older["training"]["keep"]  # the last two change nothing
    path.write_text(json.dumps(older))
    told = "loss.other_attributes = 0.1, but the run is of a version without it"
    with pytest.raises(UserError, match=f"--resume: {told}; --resume-anyway goes on so$"):
        check(load(Experiment, path), tmp_path, resume=True)
    with pytest.raises(
        UserError, match="seed = 3, but the run has 0, loss.other_attributes = 0.0, but .* without it; a"
    ):
        check(load(Experiment, path, {"loss.other_attributes": 0.0, "seed": 3}), tmp_path, resume=True)
    check(load(Experiment, path), tmp_path, resume="anyway")
    assert capsys.readouterr().err == f"warning: --resume-anyway: {told}\n"
    with pytest.raises(ValueError, match=f"of another finetuning: {told}$"):
        finetune(load(Experiment, path), checkpoints=tmp_path)


def test_judges_that_do_not_tell_the_target_by_the_same_classes_are_refused():
    def telling(**heads):
        return Judge(
            FixedBox(), (Classifier.make(MobileNetV3Config((), 8, sum(map(len, heads.values()))), heads, 8),), None
        )

    followed = telling(gender=("female", "male"), age=("young", "old"))
    check_agreement(("gender",), followed, telling(gender=("female", "male")))
    with pytest.raises(ValueError, match="judges.evaluation tells no age, which is in the target"):
        check_agreement(("gender", "age"), followed, telling(gender=("female", "male")))
    with pytest.raises(ValueError, match="the classes of gender are male, female, and by .* female, male"):
        check_agreement(("gender",), followed, telling(gender=("male", "female")))


def test_tensorboard_is_told_to_forget_the_steps_after_the_checkpoint(tmp_path):
    lines_after(tmp_path, "", 3)
    (restart,) = [event for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert restart.step == 4 and restart.session_log.status == restart.session_log.START


def test_a_network_that_is_named_twice_is_told_at_once(small_world, tmp_path, mistake):
    (name,) = fields(small_world)["judges.semantics"]
    asked = [*arguments(small_world), "--judges.semantics", f"[{name}, {name}]", "--output", tmp_path / "run"]
    assert f"judges.semantics names {name} twice" in mistake(train_program.main, *asked)
    assert not (tmp_path / "run").exists()


def test_more_joint_classes_than_can_be_aligned_are_told_at_once(small_world, tmp_path, mistake, monkeypatch):
    monkeypatch.setattr(transport, "MAX_CLASSES", 7)
    asked = [*arguments(small_world), "--target.attributes", "[gender, skin_tone]", "--output", tmp_path / "run"]
    told = mistake(train_program.main, *asked)
    assert "target.attributes = ['gender', 'skin_tone'] have 8 joint classes; at most 7 can be aligned" in told
    assert not (tmp_path / "run").exists()
