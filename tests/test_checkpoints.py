"""Checkpoints: what was not written whole, or is not what was written, is not read."""

import errno
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import full_disk

from fairjax import checkpoints, parallel
from fairjax.checkpoints import DAMAGED, SUMS, Checkpoints, Unsaved

STATE = {"weights": np.arange(4096, dtype=np.float32), "step": np.int32(1)}


@pytest.fixture
def folder(tmp_path):
    """A folder of the checkpoints 1, 2 and 3."""
    kept = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        kept.save(step, STATE | {"step": np.int32(step)})
    kept.close()
    return tmp_path / "checkpoints"


def newest(folder):
    """Its number, and the number that is saved in it."""
    kept = Checkpoints(folder, keep=3)
    step = kept.latest()
    state = kept.restore(step, jax.tree.map(np.zeros_like, STATE)) if step else None
    kept.close()
    return step, state and int(state["step"])


def largest(checkpoint):
    """The file with the weights."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(checkpoint):
    path = largest(checkpoint)
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(checkpoint):
    path = largest(checkpoint)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def delete_half(checkpoint):
    for path in [path for path in sorted(checkpoint.rglob("*")) if path.is_file()][::2]:
        path.unlink()


def never_finish(checkpoint):
    (checkpoint / SUMS).unlink()


def cut_the_sums(checkpoint):
    (checkpoint / SUMS).write_text((checkpoint / SUMS).read_text()[:-10])


def list_the_sums(checkpoint):
    (checkpoint / SUMS).write_text("[]")


def test_whole_checkpoints_are_taken_as_they_are(folder, capfd):
    assert newest(folder) == (3, 3)
    assert not (folder / DAMAGED).exists() and "warning" not in capfd.readouterr().err


@pytest.mark.faults("a checkpoint damaged", lost="the steps since the one before it")
@pytest.mark.parametrize("harm", [truncate, flip_a_bit, delete_half, never_finish, cut_the_sums, list_the_sums])
def test_a_damaged_checkpoint_is_named_and_kept_and_the_one_before_is_read(harm, folder, capfd):
    harm(folder / "3")
    before = {path.relative_to(folder / "3"): path.read_bytes() for path in (folder / "3").rglob("*") if path.is_file()}
    assert newest(folder) == (2, 2)
    error = capfd.readouterr().err
    assert error.startswith("warning: checkpoint 3 ") and error.count("\n") == 1
    (aside,) = (folder / DAMAGED).iterdir()
    assert str(aside) in error
    assert before == {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()}
    kept = Checkpoints(folder, keep=3)  # and the step can be saved again
    kept.save(3, STATE | {"step": np.int32(3)})
    kept.close()
    assert newest(folder) == (3, 3)


@pytest.mark.faults("all checkpoints damaged", lost="the run, which is told")
def test_all_may_be_damaged(folder, capfd):
    for step in ("1", "2", "3"):
        flip_a_bit(folder / step)
    assert newest(folder) == (None, None)
    assert capfd.readouterr().err.count("warning: checkpoint") == 3
    kept = Checkpoints(folder, keep=3)  # which a run refuses to begin anew from: test_cli.py
    assert kept.lost()
    kept.save(1, STATE)
    kept.finish()
    assert not kept.lost()
    kept.close()


@pytest.mark.faults("a kill in the first checkpoint", lost="the steps before it")
def test_one_that_was_never_finished_is_not_lost(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, STATE)
    kept.close()
    never_finish(tmp_path / "checkpoints" / "1")
    kept = Checkpoints(tmp_path / "checkpoints")
    assert kept.latest() is None and not kept.lost()
    kept.close()


def test_after_an_error_of_one_host_what_is_under_way_is_written_and_no_other_is_asked(tmp_path, monkeypatch):
    """The others are elsewhere, and would take the question for another."""
    with pytest.raises(KeyError), Checkpoints(tmp_path / "checkpoints") as kept:
        kept.save(1, STATE)
        monkeypatch.setattr(parallel, "told_by_first", lambda problem: pytest.fail("the others were asked"))
        raise KeyError
    monkeypatch.undo()
    assert newest(tmp_path / "checkpoints") == (1, 1)


@pytest.mark.faults("a full disk, saving")
@pytest.mark.parametrize("free", [0, 10_000])  # of the 16 KiB of the weights
def test_a_disk_that_is_full_leaves_the_checkpoints_before_and_takes_the_next_when_there_is_room(folder, free):
    kept = Checkpoints(folder, keep=3)
    with full_disk(free), pytest.raises(Unsaved, match=r"checkpoint 4 could not be saved in .*: file too large"):
        kept.save(4, STATE)
        kept.finish()
    assert kept.latest() == 3 and not list(folder.glob("4*"))
    kept.save(5, STATE | {"step": np.int32(5)})
    kept.close()
    assert newest(folder) == (5, 5)


@pytest.mark.faults("a full disk, and a thread that goes on writing")
def test_what_is_still_being_written_after_a_failure_goes_too(folder, monkeypatch):
    """The thread that fails first tells of it, and others may be at work in the same folder."""
    kept = Checkpoints(folder, keep=3)

    def late(seconds):
        if seconds and not (folder / "late").exists():
            (folder / "late").touch()
            (folder / "4.orbax-checkpoint-tmp" / "default").mkdir(parents=True)

    monkeypatch.setattr(checkpoints, "time", types.SimpleNamespace(sleep=late))
    with full_disk(), pytest.raises(Unsaved):
        kept.save(4, STATE)
        kept.finish()
    assert (folder / "late").exists() and not list(folder.glob("4*"))
    kept.close()


def test_what_was_given_is_saved_though_it_changes_before_it_is_written(tmp_path):
    """The next step's arrays may be in the same place of memory."""
    kept, weights = Checkpoints(tmp_path / "checkpoints"), jnp.arange(300_000, dtype=jnp.float32)
    changed = jax.jit(lambda weights: -weights, donate_argnums=0)
    kept.save(1, {"weights": weights})
    held = jax.__version_info__ >= (0, 11)  # which gives nothing away that numpy has looked at
    for _ in range(1 if held else 1000):  # the place is not given away while it is being read
        assert changed(weights)[1] == -1
        if weights.is_deleted():
            break
        time.sleep(0.01)
    assert weights.is_deleted() != held
    kept.finish()
    assert kept.restore(1, {"weights": jnp.zeros(300_000)})["weights"][-1] == 299_999
    kept.close()


@pytest.mark.faults("a full disk, saving while steps are taken", lost="the steps since the checkpoint before")
def test_a_disk_that_is_full_while_the_work_goes_on_is_told_before_the_next_is_begun(folder, monkeypatch):
    kept = Checkpoints(folder, keep=3)
    going_on = threading.Event()

    def full(checkpoint):
        going_on.wait()
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as context:
        context.setattr(checkpoints, "_seal", full)
        kept.save(4, STATE)
        assert kept.latest() == 3  # not before it is whole
        going_on.set()
        with pytest.raises(Unsaved, match="checkpoint 4 could not be saved in .*: no space left on device"):
            kept.save(5, STATE)
    assert kept.latest() == 3 and not list(folder.glob("[45]*"))
    kept.save(5, STATE | {"step": np.int32(5)})
    kept.close()
    assert newest(folder) == (5, 5)


def test_a_host_knows_what_it_has_saved_before_the_first_has_sealed_it(folder, monkeypatch):
    """Else it would save it again, where steps are saved and looked at in one, and end the run of all."""
    monkeypatch.setattr(parallel, "is_first", lambda: False)
    kept = Checkpoints(folder, keep=3)
    kept.save(4, STATE)
    kept.finish()
    assert not (folder / "4" / SUMS).exists() and kept.latest() == 4
    kept.close()


def test_the_newest_stay_and_every_so_many_and_the_best(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=2, keep_every=4)
    for step in range(1, 12):
        kept.save(step, STATE | {"step": np.int32(step)})
        if step == 7:
            kept.best = 6
    kept.close()
    stayed = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()}
    assert stayed == {4, 6, 8, 10, 11} and newest(tmp_path / "checkpoints") == (11, 11)


@pytest.mark.faults("a kill while a checkpoint is let go of")
def test_one_that_was_half_deleted_is_no_checkpoint_and_goes_with_the_next(folder, monkeypatch):
    def killed(checkpoint):
        largest(checkpoint).unlink()
        raise KeyboardInterrupt

    kept = Checkpoints(folder, keep=3)
    with monkeypatch.context() as context:
        context.setattr(checkpoints.shutil, "rmtree", killed)
        kept.save(4, STATE)
        with pytest.raises(KeyboardInterrupt):
            kept.finish()
    assert sorted(path.name for path in folder.iterdir()) == ["1.discarded", "2", "3", "4"]
    kept = Checkpoints(folder, keep=3)
    kept.save(5, STATE)
    kept.close()
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4", "5"]
