"""Looks at a run on the way: which adapter is the best, what collapses, and what of it stays."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from running import full_disk
from small_world import fields

from fairjax import parallel, prompts
from fairjax.checkpoints import Checkpoints
from fairjax.config import Experiment
from fairjax.convert.bundles import save_adapter
from fairjax.evaluation.measuring import Seen
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning
from fairjax.training.validation import Looked, Validation

SMALL = {
    "training.steps": 4, "training.images_per_prompt": 4, "training.num_steps": (2, 2), "training.grad_steps": 1,
    "training.save_every": 3, "training.keep": 1, "validation.every": 2, "validation.subjects": 2,
    "validation.images_per_prompt": 8, "validation.num_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def finetuning(small_world):
    return Finetuning(load(Experiment, None, SMALL | fields(small_world)), parallel.mesh(1))


def looked(women, faces=16, embedded=None):
    """What is seen where so many of 8 images are of women, for two prompts, and so many of all 16 show a face."""
    labels = np.array([[0] * n + [1] * (8 - n) for n in women])
    has_face = (np.arange(16) < faces).reshape(2, 8)
    rows = np.random.default_rng(0).normal(size=(2, 8, 4)) if embedded is None else embedded
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return Looked(Seen({"gender": np.eye(2)[labels]}, has_face, None, np.zeros((2, 8, 4))), [rows])


@pytest.fixture
def validation(finetuning, tmp_path):
    """Sees what it is given, in order; the first is the frozen model's."""
    seen = []
    found = Validation(finetuning, tmp_path, 0)
    found._look = lambda bundle: seen.pop(0)
    found.gives = seen.extend
    return found


def test_the_best_is_the_nearest_to_the_target_that_has_not_collapsed(validation, capsys):
    base = looked((8, 0))
    validation.gives([base, looked((6, 1)), looked((5, 4)), looked((4, 2), faces=12), looked((5, 4))])
    for step in (2, 4, 6, 8):
        validation(step, {})
    assert [row["distance"] for row in validation.rows] == pytest.approx([(2 + 3) / 16, 1 / 16, 0, 1 / 16])
    assert validation.best == 4  # not the one at 6, in which faces go; and of equals the first
    told = capsys.readouterr().err
    assert told == (
        "warning: step 6: 0.75 show a face, as a share of the frozen model's: below validation.min_faces = 0.8\n"
    )


def test_images_that_mean_something_else_or_are_all_alike_are_warned_of(validation, capsys):
    same = np.broadcast_to(np.eye(4)[0], (2, 8, 4))
    validation.gives([looked((4, 4)), looked((4, 4), embedded=same), looked((4, 4), faces=0)])
    validation(2, {})
    told = capsys.readouterr().err
    assert "below validation.min_similarity = 0.4" in told and "below validation.min_diversity = 0.5" in told
    validation(4, {})
    assert validation.rows[-1]["distance"] is None and "validation.min_faces" in capsys.readouterr().err
    assert validation.best is None


@pytest.mark.faults("a kill between a look and its adapter")
def test_a_look_whose_adapter_was_not_kept_is_taken_again(validation, finetuning, tmp_path):
    """Else the best is one that is not in the folder."""

    def killed(step, scalars, bundle):
        raise KeyboardInterrupt

    validation.on_look = killed
    validation.gives([looked((8, 0)), looked((4, 4))])
    with pytest.raises(KeyboardInterrupt):
        validation(2, {})
    assert Validation(finetuning, tmp_path, 2).due(2)


@pytest.mark.faults("a full disk, looking at the adapter", lost="that look's line, until the next")
def test_a_disk_that_is_full_does_not_end_a_run(validation, finetuning, tmp_path, capsys):
    adapter, there = {"soft_prompt": {"embedding": np.zeros((64, 16), np.float32)}}, tmp_path / "best"
    validation.on_look = lambda step, scalars, bundle: save_adapter(bundle, finetuning.pipeline, there)
    validation.gives([looked((8, 0)), looked((4, 4)), looked((4, 4)), looked((5, 4))])
    with full_disk():
        validation(2, {})
    with full_disk(600):  # the line has room, and the adapter has none
        validation(3, adapter)
    told = capsys.readouterr().err
    assert told.count("could not be kept: ") == told.count("\n") == 2
    validation(4, adapter)
    assert validation.best == 2 and len((tmp_path / "validation.jsonl").read_text().splitlines()) == 3
    assert list(there.glob("*.safetensors"))


def test_a_run_that_goes_on_looks_again_at_nothing_and_forgets_what_it_takes_again(validation, finetuning, tmp_path):
    validation.gives([looked((8, 0)), looked((4, 4)), looked((6, 2))])
    assert [step for step in range(6) if validation.due(step)] == [2, 4]  # 4 is the last
    validation(2, {})
    validation(4, {})
    again = Validation(finetuning, tmp_path, 3)
    assert again.best == 2 and not again.due(2) and again.due(4)
    assert Validation(finetuning, tmp_path, 4).due(4) is False


def test_a_look_taken_otherwise_is_not_compared(validation, finetuning, tmp_path):
    """Chance adds more to the distance of few images, and other bounds warn of others."""
    validation.gives([looked((8, 0)), looked((4, 4)), looked((6, 4), faces=12)])
    validation(2, {})
    validation(3, {})
    assert validation.best == 2
    changed = lambda **fields: finetuning.config.model_copy(  # noqa: E731
        update={"validation": finetuning.config.validation.model_copy(update=fields)}
    )
    other = SimpleNamespace(**vars(finetuning) | {"config": changed(images_per_prompt=64)})
    assert Validation(other, tmp_path, 3).best is None
    other.config = changed(min_faces=0.5)
    again = Validation(other, tmp_path, 4)
    assert again.best is None and again.due(4) and len(again.rows) == 2
    other.config = changed(every=1)
    assert Validation(other, tmp_path, 3).best == 2


def test_a_run_keeps_the_best_checkpoint_and_measures_what_its_adapter_makes(finetuning, tmp_path):
    """With the networks: the first look is at what the second step left, and a second program sees the same."""
    kept, told = Checkpoints(tmp_path / "checkpoints", keep=1), []
    look = Validation(finetuning, tmp_path, 0, lambda step, scalars, bundle: told.append((step, scalars, bundle)))
    look.section = look.section.model_copy(update={"min_faces": 0.0, "min_similarity": -1.0, "min_diversity": 0.0})
    state = finetuning.run(kept, look=look)
    kept.close()
    steps = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()}
    assert steps == {look.best, 4} and [step for step, *_ in told] == [2, 4]
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert rows == look.rows and [row["step"] for row in rows] == [2, 4]
    (_, first, _), (_, last, bundle) = told
    assert first.keys() == {f"validation/{name}" for name in ("distance", "faces", "similarity", "diversity")}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(bundle), jax.device_get(state.ema))
    apart = Validation(finetuning, tmp_path / "other", 0)._measured(jax.device_get(state.ema))
    assert {f"validation/{name}": pytest.approx(value, rel=1e-4) for name, value in apart.items()} == last
    assert 0 <= last["validation/distance"] <= 1 and last["validation/similarity"] > 0.5


def test_looks_never_ask_for_whom_is_held_out():
    world = prompts.subjects(load(Experiment, None, {}).prompts)
    chosen = world.validating(8)
    assert len(chosen) == 8 and {p.subject for p in chosen} <= set(world.trained)
    ours = prompts.subjects(load(Experiment, None, {"prompts.sources": ({"name": "occupations"},)}).prompts)
    chosen = {p.subject for p in ours.validating(10)}
    assert len(chosen) == 10 and not chosen & {*ours.trained, *ours.held_out}  # the list has a split for it


def test_a_model_that_shows_nobody_at_all_is_no_reason_to_fail(validation):
    validation.gives([looked((4, 4), faces=0), looked((4, 4))])
    validation(2, {})
    assert validation.rows[0]["faces"] is None and validation.rows[0]["warnings"] == []


def test_a_run_that_sees_no_face_at_all_is_warned_of(validation, capsys):
    validation.gives([looked((4, 4), faces=0), looked((4, 4), faces=0)])
    validation(2, {})
    told = "warning: step 2: no image shows a face, nor one of the frozen model's: nothing is learned"
    assert capsys.readouterr().err.startswith(told) and validation.rows[0]["warnings"]


def test_none_is_none(finetuning, tmp_path):
    off = finetuning.config.model_copy(
        update={"validation": finetuning.config.validation.model_copy(update={"every": None})}
    )
    quiet = SimpleNamespace(**{n: getattr(finetuning, n) for n in ("subjects", "attributes", "target")}, config=off)
    assert not any(Validation(quiet, tmp_path, 0).due(step) for step in range(5))
