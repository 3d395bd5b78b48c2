"""A run that stands still says so, and where."""

import time
from types import SimpleNamespace

import pytest

from fairjax.training import watch as watches
from fairjax.training.watch import Watch

STEP = 0.05


@pytest.fixture
def clock(monkeypatch):
    """Goes as the test says: a machine that stops the test for a while is no stall."""
    clock = SimpleNamespace(now=0.0)
    told = SimpleNamespace(monotonic=lambda: clock.now, strftime=time.strftime)
    monkeypatch.setattr(watches, "time", told)
    return clock


def steps(watch, clock, count):
    for _ in range(count):
        clock.now += STEP
        watch.beat()


def standing_still(watch, clock):
    """Until it is noticed, or the test has waited long enough."""
    before, end = watch._file.read_text() if watch._file.exists() else "", time.monotonic() + 20
    clock.now += 1
    while time.monotonic() < end:
        now = watch._file.read_text() if watch._file.exists() else ""
        if now.count("\n\n") > before.count("\n\n"):
            return now
        time.sleep(STEP)
    raise AssertionError("nothing was noticed")


@pytest.mark.faults("a stall")
def test_each_stall_is_told_once_with_the_stacks_of_all_threads(clock, tmp_path, capsys):
    with Watch(tmp_path / "stalls.txt", patience=10, least=0.4) as watch:
        steps(watch, clock, 5)
        told = standing_still(watch, clock)
        assert "in standing_still" in told and "no step for" in told
        clock.now += 1
        time.sleep(0.5)
        assert (tmp_path / "stalls.txt").read_text() == told  # and not again and again
        steps(watch, clock, 5)
        assert standing_still(watch, clock).count("no step for") == 2
    assert capsys.readouterr().err.count(f"s; {tmp_path}/stalls.txt says what the program is at") == 2


@pytest.mark.faults("a stall, on a disk that takes no stacks", lost="the stacks, which is told")
def test_a_stall_is_told_though_the_stacks_cannot_be_written(clock, tmp_path, capsys):
    (tmp_path / "stalls.txt").mkdir()
    with Watch(tmp_path / "stalls.txt", patience=2, least=0.2) as watch:
        for count in (1, 2):
            steps(watch, clock, 3)
            clock.now += 1
            end = time.monotonic() + 20
            told = ""
            while "cannot be written: is a directory" not in told and time.monotonic() < end:
                time.sleep(STEP)
                told += capsys.readouterr().err
            assert told.count("warning: no step for") == 1, count
        assert watch._thread.is_alive()


def test_a_look_between_two_steps_is_no_stall_while_its_batches_come(clock, tmp_path, capsys):
    """Nor does it count for a step that took as long."""
    with Watch(tmp_path / "stalls.txt", patience=2, least=0.2) as watch:
        steps(watch, clock, 3)
        for _ in range(5):
            clock.now += 0.15
            watch.alive()
            time.sleep(0.1)
        assert not (tmp_path / "stalls.txt").exists() and capsys.readouterr().err == ""
        steps(watch, clock, 1)
        assert max(watch._seconds) == pytest.approx(STEP)


def test_before_the_first_steps_it_waits_as_long_as_it_takes_to_compile(clock, tmp_path, capsys):
    with Watch(tmp_path / "stalls.txt", patience=2, least=0.1) as watch:
        for _ in range(2):
            clock.now += 1
            time.sleep(0.5)
            watch.beat()  # after the first there is no second one yet, which would say how long they take
    assert not (tmp_path / "stalls.txt").exists() and capsys.readouterr().err == ""
