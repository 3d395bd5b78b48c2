"""A run that stands still says so, and where."""

import time

import pytest

from fairjax.training.watch import Watch

STEP = 0.05


def steps(watch, count):
    for _ in range(count):
        time.sleep(STEP)
        watch.beat()


def standing_still(watch):
    """Until it is noticed, or the test has waited long enough."""
    before, end = watch._file.read_text() if watch._file.exists() else "", time.monotonic() + 20
    while time.monotonic() < end:
        now = watch._file.read_text() if watch._file.exists() else ""
        if now.count("\n\n") > before.count("\n\n"):
            return now
        time.sleep(STEP)
    raise AssertionError("nothing was noticed")


@pytest.mark.faults("a stall")
def test_each_stall_is_told_once_with_the_stacks_of_all_threads(tmp_path, capsys):
    with Watch(tmp_path / "stalls.txt", patience=10, least=0.4) as watch:
        steps(watch, 5)
        told = standing_still(watch)
        assert "in standing_still" in told and "no step for" in told
        time.sleep(0.5)
        assert (tmp_path / "stalls.txt").read_text() == told  # and not again and again
        steps(watch, 5)
        assert standing_still(watch).count("no step for") == 2
    assert capsys.readouterr().err.count(f"s; {tmp_path}/stalls.txt says what the program is at") == 2


@pytest.mark.faults("a stall, on a disk that takes no stacks", lost="the stacks, which is told")
def test_a_stall_is_told_though_the_stacks_cannot_be_written(tmp_path, capsys):
    (tmp_path / "stalls.txt").mkdir()
    with Watch(tmp_path / "stalls.txt", patience=2, least=0.2) as watch:
        for count in (1, 2):
            steps(watch, 3)
            end = time.monotonic() + 20
            told = ""
            while "cannot be written: is a directory" not in told and time.monotonic() < end:
                time.sleep(STEP)
                told += capsys.readouterr().err
            assert told.count("warning: no step for") == 1, count
        assert watch._thread.is_alive()


def test_before_the_first_steps_it_waits_as_long_as_it_takes_to_compile(tmp_path, capsys):
    with Watch(tmp_path / "stalls.txt", patience=2, least=0.1) as watch:
        time.sleep(0.5)
        watch.beat()
        time.sleep(0.5)  # there is no second one yet, which would say how long they take
    assert not (tmp_path / "stalls.txt").exists() and capsys.readouterr().err == ""
