"""A run that is asked to end does so after the step under way, and goes on to the numbers of one that never was."""

import json
import signal
import subprocess
import sys
import time

import pytest
from running import assert_the_same_run, finish, launch, lines, states, wait_for_steps

from fairjax.training.interruption import TO_GO_ON

STEPS = 60
RUN = ("--training.steps", str(STEPS), "--training.save_every", "1000")


@pytest.fixture(scope="module")
def whole(small_world, tmp_path_factory):
    """The folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(small_world, folder, *RUN))
    return folder


@pytest.mark.slow
@pytest.mark.faults("SIGTERM, or Ctrl-C")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_goes_on_to_the_same_numbers(number, whole, small_world, tmp_path):
    folder = tmp_path / "run"
    process = launch(small_world, folder, *RUN, signalled=(number.name, "fairjax.training.log:Log.__call__", "3"))
    output, error = process.communicate(timeout=300)
    assert process.returncode == TO_GO_ON != 0, error[-2000:]
    assert "--resume goes on from here" in output
    assert "ending after what is under way" in error and "Traceback" not in error
    done = lines(folder)[-1]["step"]
    assert 3 <= done < STEPS and [path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()] == [
        str(done)
    ]
    finish(launch(small_world, folder, *RUN, "--resume"))
    assert_the_same_run(whole, folder)


@pytest.mark.slow
@pytest.mark.faults("SIGTERM, while a run looks at its adapter", lost="the look, which is taken again")
def test_a_look_is_left_between_two_batches_and_taken_again(small_world, tmp_path):
    """It may take as long as many steps, and whoever asks a run to end waits for one."""
    folder, kept = tmp_path / "run", tmp_path / "run" / "validation.jsonl"
    looks = ("--validation.every", "2", "--validation.subjects", "2", "--validation.images_per_prompt", "8")
    asked = ("--training.steps", "4", "--training.save_every", "1000", *looks)
    process = launch(small_world, folder, *asked, signalled=("SIGTERM", "fairjax.training.watch:Watch.alive", "1"))
    output, error = process.communicate(timeout=300)
    assert process.returncode == TO_GO_ON, error[-2000:]
    assert "--resume goes on from here" in output and "Traceback" not in error
    assert [row["step"] for row in lines(folder)] == [1, 2] and max(states(folder)) == 2 and not kept.exists()
    finish(launch(small_world, folder, *asked, "--resume"))
    assert [row["step"] for row in lines(folder)] == [1, 2, 3, 4]
    assert [json.loads(line)["step"] for line in kept.read_text().splitlines()] == [2, 4]


@pytest.mark.faults("a closed terminal, or Slurm's --signal")
@pytest.mark.parametrize("ignored", [False, True])
def test_what_else_would_end_a_run_as_it_is_asks_it_to_end(ignored):
    """But a closed terminal where `nohup` keeps that away."""
    code = (
        "import os, signal\nfrom fairjax.training.interruption import interruption\n"
        f"signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if ignored else 'DFL'})\n"  # whatever these tests run under
        "for name in ('SIGHUP', 'SIGUSR1', 'SIGUSR2'):\n"
        "    with interruption() as asked:\n        os.kill(os.getpid(), getattr(signal, name))\n"
        "    print(name, asked.asked)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["SIGHUP", str(not ignored), "SIGUSR1", "True", "SIGUSR2", "True"]


@pytest.mark.slow
@pytest.mark.faults("a second Ctrl-C", lost="the steps since the last checkpoint")
def test_a_second_ctrl_c_ends_at_once(small_world, tmp_path):
    process = launch(small_world, tmp_path / "run", "--training.steps", "100000")
    wait_for_steps(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # may come while the first is dealt with
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    # 130, which is also what a shell calls the signal; TO_GO_ON: faster than the second
    assert process.returncode in (130, -signal.SIGINT, TO_GO_ON) and "Traceback" not in error
