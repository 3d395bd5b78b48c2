"""Faults, injected for real: `pytest -m faults`."""

import random
import signal
import time

import numpy as np
import pytest
from running import finish, launch, lines
from safetensors.numpy import load_file

from fairjax.convert.adapters import LORA_FILE

pytestmark = pytest.mark.faults

STEPS, SAVED_EVERY, KILLS = 240, 10, 20
RUN = ("--training.steps", str(STEPS), "--training.save_every", str(SAVED_EVERY), "--training.images_every", "1000")


def saving(folder):
    """Whether a checkpoint is being written."""
    return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def newest(folder):
    return max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdecimal()), default=0)


def kill(process, folder, seconds, inside_a_write):
    """Kills it after so many seconds, or a step later where that is at once; or while a checkpoint is being written."""
    until = time.monotonic() + seconds
    while process.poll() is None and (time.monotonic() < until or (inside_a_write and not saving(folder))):
        time.sleep(0.0005 if inside_a_write else 0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_run_killed_at_twenty_moments_ends_with_the_numbers_of_one_that_was_not(small_world, tmp_path, capsys):
    """Bit for bit; each kill costs at most the steps since the last checkpoint."""
    whole, folder, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    began = time.monotonic()
    finish(launch(small_world, whole, *RUN))
    usual = time.monotonic() - began
    rows, inside = [], 0
    for number in range(KILLS):
        # on its way to the first step, at any moment of the run, and while it writes
        inside_a_write = number % 3 == 2
        before = newest(folder)
        process = launch(small_world, folder, *RUN, *(["--resume"] if (folder / "config.yaml").is_file() else []))
        kill(process, folder, rng.uniform(0.2, 1.0) * usual * (0.3 if inside_a_write else 0.7), inside_a_write)
        done, kept = len(lines(folder)), newest(folder)
        caught = saving(folder)
        inside += caught
        rows.append((number + 1, before, done, kept, "yes" if caught else ""))
        assert kept >= before and done - kept <= SAVED_EVERY + 1, rows[-1]
    _, error = finish(launch(small_world, folder, *RUN, "--resume"))

    assert [row["loss"] for row in lines(folder)] == [row["loss"] for row in lines(whole)]
    first, second = (load_file(run / "adapter" / LORA_FILE) for run in (whole, folder))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert inside >= 3, "too few kills fell into a write"
    with capsys.disabled():
        print("\nkill  from step  steps taken  newest checkpoint  while writing")
        for row in rows:
            print("{:4}  {:9}  {:11}  {:17}  {}".format(*row))
