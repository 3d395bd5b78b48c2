"""Several hosts: two processes of four devices each make the run that one process of eight makes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from devices import flags
from safetensors.numpy import load_file
from small_world import arguments

import eval as eval_program
import train as train_program
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.convert.adapters import EMBEDDINGS_FILE, LORA_FILE
from fairjax.training.run import check

RUN = (
    "--adapter.kinds", "[text_encoder, unet, soft_prompt]", "--training.steps", "3", "--training.save_every", "2",
    "--training.prompts_per_step", "2", "--training.images_per_prompt", "8", "--training.images_every", "2",
    "--training.num_steps", "[2, 3]", "--evaluation.subjects", "1", "--evaluation.images_per_prompt", "8",
    "--evaluation.num_steps", "2", "--evaluation.batch_size", "8",
)  # fmt: skip


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def launch(program, devices, *argv, cache=None):
    environment = os.environ | {"XLA_FLAGS": flags(devices), "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    if cache:  # every program, however short a time it takes to compile
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, program, *argv]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes):
    outputs = [process.communicate(timeout=300) for process in processes]
    errors = "\n\n".join(error[-3000:] for _, error in outputs)  # of all: where one ends, the others fail for it
    assert not any(process.returncode for process in processes), errors
    gloo = "[Gloo]"  # what joins processes on CPUs tells of itself
    return ["\n".join(line for line in output.splitlines() if not line.startswith(gloo)) for output, _ in outputs]


def on_two(program, *argv):
    """What each of two processes of four devices prints."""
    port = free_port()
    together = ("--coordinator", f"localhost:{port}", "--num-processes", "2")
    return finish([launch(program, 4, *argv, *together, "--process-id", str(number)) for number in range(2)])


class Runs(NamedTuple):
    one: Path  # by one process of eight devices
    two: Path  # by two processes of four
    printed: list[str]  # by each of the two
    compiled: Path  # what the one compiled


@pytest.fixture(scope="module")
def runs(small_world, tmp_path_factory):
    """The folders of the same run."""
    folder, argv = tmp_path_factory.mktemp("runs"), ("train.py", *arguments(small_world), *RUN, "--output")
    one, two = folder / "one", folder / "two"
    finish([launch(argv[0], 8, *argv[1:], str(one), cache=folder / "compiled")])
    return Runs(one, two, on_two(*argv, str(two)), folder / "compiled")


def test_two_hosts_train_what_one_trains(runs):
    """Sums are in another order; AdamW's first steps are signs of the gradient, so tiny ones may differ by a step."""
    one, two = runs.one, runs.two
    for name in (LORA_FILE, EMBEDDINGS_FILE):
        first, second = (load_file(run / "adapter" / name) for run in (one, two))
        assert first.keys() == second.keys()
        for key in first:
            assert np.abs(first[key] - second[key]).mean() <= 1e-5, key
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [row["step"] for row in logs[1]] == [1, 2, 3]  # written once
    for first, second in zip(*logs, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)


def test_two_hosts_measure_what_one_measures(runs):
    """And the second of the two shows and writes nothing."""
    first, second = (json.loads((run / "results.json").read_text()) for run in (runs.one, runs.two))
    assert first["per_prompt"] == second["per_prompt"]
    for name in ("before", "after"):
        for path in (runs.one / "samples").glob(f"{name}-*.npz"):
            images = [np.load(run / "samples" / path.name)["images"].astype(int) for run in (runs.one, runs.two)]
            assert np.abs(images[0] - images[1]).max() <= 1  # of 255
    assert "subject recognised" in runs.printed[0] and runs.printed[1] == ""


def test_no_host_makes_anything_before_all_have_looked(small_world, tmp_path, monkeypatch):
    """A slower one would take what the first made for another run, and end."""

    class Reached(Exception):
        pass

    def wait(_):
        raise Reached

    monkeypatch.setattr(parallel, "wait_for_all", wait)
    with pytest.raises(Reached):
        train_program.main([*arguments(small_world), *RUN, "--output", str(tmp_path / "run")])
    check(Experiment(), tmp_path / "run", resume=False)


@pytest.mark.slow
def test_a_run_of_two_hosts_goes_on_on_one(runs, small_world):
    """The checkpoint is orbax's, of all hosts; it is restored onto whatever devices there are."""
    more = ("--training.steps", "4", "--resume", "--output", str(runs.two))
    finish([launch("train.py", 8, *arguments(small_world), *RUN, *more)])
    steps = [json.loads(line)["step"] for line in (runs.two / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_what_was_compiled_once_is_not_compiled_again(runs, small_world, tmp_path):
    argv = ("train.py", 8, *arguments(small_world), *RUN, "--output", str(tmp_path / "again"))
    before = set(os.listdir(runs.compiled))
    finish([launch(*argv, cache=runs.compiled)])
    assert before and set(os.listdir(runs.compiled)) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--num-processes 2", "--coordinator is missing: --coordinator, --num-processes, --process-id go together"),
        ("--coordinator here --num-processes 2 --process-id 0", "--coordinator = 'here' must be HOST:PORT"),
        ("--coordinator a:1 --num-processes two --process-id 0", "--num-processes = 'two' must be a whole number"),
        ("--coordinator a:1 --num-processes 2 --process-id 2", "--process-id = 2 must be below --num-processes = 2"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, message, mistake, tmp_path):
    assert message in mistake(train_program.main, "--output", tmp_path / "run", *options.split())
    assert message in mistake(eval_program.main, "--adapter", tmp_path, *options.split())
