"""Faults, injected for real: `pytest -m faults`."""

import json
import random
import signal
import time

import jax
import pytest
from running import assert_the_same_run, finish, launch, lines

from fairjax.adapters import bundle as bundles
from fairjax.convert.bundles import save_adapter
from fairjax.files import SUMS
from fairjax.pipeline import Pipeline

STEPS, SAVED_EVERY, KILLS = 240, 10, 20
RUN = ("--training.steps", str(STEPS), "--training.save_every", str(SAVED_EVERY), "--training.images_every", "1000")


def writes(folder):
    """The checkpoints that are being written, or were when the program was killed."""
    return {path.name for path in (folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def newest(folder):
    """The newest checkpoint that was written to its end, checksums included."""
    whole = [path.parent.name for path in (folder / "checkpoints").glob(f"*/{SUMS}") if path.parent.name.isdecimal()]
    return max(map(int, whole), default=0)


def kill(process, folder, rng, how):
    """Kills it on its way to the first step, after some steps, or inside the next write of a checkpoint.

    Returns:
        Whether a checkpoint was being written.
    """
    written, begun = writes(folder), len(lines(folder))
    if how == "starting":
        time.sleep(rng.uniform(0.2, 6))
    elif how == "stepping":
        goal = begun + rng.randint(1, 2 * SAVED_EVERY)
        while process.poll() is None and len(lines(folder)) < goal:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
    else:
        while process.poll() is None and not writes(folder) - written:
            time.sleep(0.0005)
    assert process.poll() is None, "it had ended before"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return bool(writes(folder) - written)


@pytest.mark.slow
@pytest.mark.faults("a run killed", count=KILLS)
def test_a_run_killed_at_twenty_moments_ends_with_the_numbers_of_one_that_was_not(
    small_world, tmp_path, capsys, record_property
):
    """Bit for bit; each kill costs at most the steps since the last whole checkpoint, and the one that is being written
    is none."""
    whole, folder, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    finish(launch(small_world, whole, *RUN))
    rows, inside = [], 0
    for number in range(KILLS):
        how = ("stepping", "writing", "starting")[number % 3]
        before = newest(folder)
        process = launch(small_world, folder, *RUN, *(["--resume"] if (folder / "config.yaml").is_file() else []))
        caught = kill(process, folder, rng, how)
        done, kept = len(lines(folder)), newest(folder)
        inside += caught
        rows.append((number + 1, how, before, done, kept, "yes" if caught else ""))
        assert kept >= before and done - kept <= 2 * SAVED_EVERY + 1, rows[-1]  # one more may be under way
    assert newest(folder) < STEPS
    finish(launch(small_world, folder, *RUN, "--resume"))

    assert_the_same_run(whole, folder)
    assert inside >= 3, "too few kills fell into a write"
    most = max(done - kept for *_, done, kept, _ in rows)
    record_property("lost", f"{most} steps at most, with a checkpoint every {SAVED_EVERY}; taken again, bit for bit")
    with capsys.disabled():
        print("\nkill  while     from step  steps logged  newest checkpoint  inside a write")
        for row in rows:
            print("{:4}  {:8}  {:9}  {:12}  {:17}  {}".format(*row))


@pytest.mark.slow
@pytest.mark.faults("an evaluation killed", lost="the prompts under way")
def test_a_killed_evaluation_goes_on_to_the_same_tables(small_world, tmp_path):
    """What was kept of it is read, and every number of its results is that of one that was not killed."""
    pipeline = Pipeline.from_pretrained(small_world)
    adapter = bundles.init(("unet",), pipeline.params, 2, 0, jax.random.key(0))
    save_adapter(jax.tree.map(lambda leaf: leaf + 0.1, adapter), pipeline, tmp_path / "adapter")

    def evaluated(folder, **how):
        asked = ("--adapter", str(tmp_path / "adapter"), "--prompts.nobody", "[a lake]", "--evaluation.subjects", "2")
        return launch(small_world, folder, *asked, program="eval.py", **how)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(evaluated(whole))
    evaluated(killed, signalled=("SIGKILL", "fairjax.evaluation.columns:_keep", "3")).communicate()
    left = {path: path.stat().st_mtime_ns for path in (killed / "samples").glob("*.npz")}
    assert 1 <= len(left) < len(list((whole / "samples").iterdir())) and not (killed / "results.json").exists()
    finish(evaluated(killed))
    assert all(path.stat().st_mtime_ns == when for path, when in left.items())
    first, second = (json.loads((run / "results.json").read_text()) for run in (whole, killed))
    for results in (first, second):
        del results["command"], results["config"]["output"]  # which name their folders
    assert first == second and first["before"] != first["after"]
