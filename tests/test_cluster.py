"""Several hosts: two processes of four devices each make the run that one process of eight makes."""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from devices import flags
from running import lines, states
from safetensors.numpy import load_file
from small_world import arguments

import eval as eval_program
import train as train_program
from fairjax import cluster, parallel
from fairjax.config import Experiment
from fairjax.convert.adapters import EMBEDDINGS_FILE, LORA_FILE
from fairjax.program import UserError
from fairjax.training.interruption import TO_GO_ON
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


# What joins processes on CPUs tells of itself: a piece at a time from as many threads as there are devices, so that any
# of its lines may begin in the middle of another
GLOO = re.compile(
    r"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. Expected number of connected peer ranks is : )*"
)


def own(output):
    """What our program printed."""
    return "\n".join(line for line in output.splitlines() if not GLOO.fullmatch(line))


def finish(processes):
    outputs = [process.communicate(timeout=300) for process in processes]
    errors = "\n\n".join(error[-3000:] for _, error in outputs)  # of all: where one ends, the others fail for it
    assert not any(process.returncode for process in processes), errors
    return [own(output) for output, _ in outputs]


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


def adapter(run):
    """Every number of a run's adapter, in one row."""
    files = [load_file(run / "adapter" / name) for name in (LORA_FILE, EMBEDDINGS_FILE)]
    return np.concatenate([file[key].ravel() for file in files for key in sorted(file)])


def moments(run):
    """By kind of adapter, the optimizer's first moments in the last checkpoint: what all gradients came to."""
    (*_, last), found = sorted(states(run).items()), {}
    for path, leaf in sorted(last[1].items()):
        if kind := re.match(r"\['optimizer'\]\[0\]\['mu'\]\['(\w+)'\]", path):
            found.setdefault(kind[1], []).append(leaf.ravel())
    return {kind: np.concatenate(leaves) for kind, leaves in found.items()}


def assert_trained_alike(one, other):
    """Gradients, of which AdamW hides a wrong factor, and what came of them.

    Sums are in another order. AdamW's first steps are signs of the gradient, so that the tiniest may differ by a step.
    """
    wished, found = moments(one), moments(other)
    assert wished.keys() == found.keys() == {"text_encoder", "unet", "soft_prompt"}
    for kind, moment in wished.items():
        assert np.abs(moment).max() > 0, kind
        assert np.abs(found[kind] - moment).max() <= 2e-4 * np.abs(moment).max(), kind
    apart = np.abs(adapter(other) - adapter(one))
    assert np.quantile(apart, 0.99) <= 1e-6 and apart.max() <= 1e-3


def test_two_hosts_train_what_one_trains(runs):
    one, two = runs.one, runs.two
    assert_trained_alike(one, two)
    logs = [lines(run) for run in (one, two)]
    assert [row["step"] for row in logs[1]] == [1, 2, 3]  # written once
    for first, second in zip(*logs, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)


def assert_measured_alike(one, other):
    """Counts and rates of every prompt, and images up to the rounding to bytes."""
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert first["per_prompt"] == second["per_prompt"]
    names = sorted(path.name for path in (one / "samples").glob("*.npz"))
    assert {name.partition("-")[0] for name in names} == {"before", "after"}
    for name in names:
        images = [np.load(folder / "samples" / name)["images"].astype(int) for folder in (one, other)]
        assert np.abs(images[0] - images[1]).max() <= 1  # of 255


def test_two_hosts_measure_what_one_measures(runs):
    """And the second of the two shows and writes nothing."""
    assert_measured_alike(runs.one, runs.two)
    assert "subject recognised" in runs.printed[0] and runs.printed[1] == ""


def test_an_evaluation_on_two_hosts_gives_what_one_device_gives(runs, tmp_path):
    """Images of a prompt that are no multiple of the eight devices, of one adapter."""
    one, two = tmp_path / "one", tmp_path / "two"
    argv = ("eval.py", "--adapter", str(runs.one), "--evaluation.images_per_prompt", "5", "--output")
    alone = launch(argv[0], 1, *argv[1:], str(one))
    printed = on_two(*argv, str(two))
    finish([alone])
    assert_measured_alike(one, two)
    assert "subject recognised" in printed[0] and printed[1] == ""


def test_what_befalls_one_host_is_known_to_all(tmp_path):
    """Memory of more bytes than 32 bits count, a folder in use, a disk that does not take a checkpoint, a signal, and a
    folder of what is compiled that is not the others'.
    """
    port = str(free_port())
    program = str(Path(__file__).parent / "two_hosts.py")
    found = finish([launch(program, 1, port, str(process), str(tmp_path)) for process in range(2)])
    first, second = (json.loads(output.splitlines()[-1]) for output in found)
    assert first == second
    assert first["memory"] == 78 and first["ended"] == 500 and first["measured"] == 3 * 8
    assert first["compiled"] == [False, True, True, False]
    assert first["locked"] == f"output = {str(tmp_path)!r}: another program is at work in it"
    assert first["saved"]["latest"] == [1, 1, 1, 4] and first["saved"]["restored"] == [4, 32]
    assert [told.partition(" in ")[0] for told in first["saved"]["told"]] == [
        "checkpoint 2 could not be saved", "checkpoint 3 could not be saved"
    ]  # fmt: skip
    assert all(told.endswith(": no space left on device") for told in first["saved"]["told"])


@pytest.mark.slow
@pytest.mark.faults("a folder that another program is in, for one host of two")
def test_an_error_of_one_host_ends_all_at_once(small_world, tmp_path):
    """With one line and exit code 2: JAX would have them wait for each other for five minutes."""
    with parallel.alone(tmp_path / "run"):
        port, argv = free_port(), ("train.py", *arguments(small_world), *RUN, "--output", str(tmp_path / "run"))
        together = ("--coordinator", f"localhost:{port}", "--num-processes", "2")
        processes = [launch(argv[0], 4, *argv[1:], *together, "--process-id", str(number)) for number in range(2)]
        for process in processes:
            _, error = process.communicate(timeout=120)
            assert process.returncode == 2 and "another program is at work in it" in error, error[-2000:]


@pytest.mark.slow
@pytest.mark.faults("SIGTERM of one host of two, while they look at the adapter", lost="the look, which is taken again")
def test_a_host_that_is_to_end_in_a_look_ends_all_between_two_batches(small_world, tmp_path):
    """Each asks the others after each batch, so that none goes on alone."""
    run, argv = tmp_path / "run", ("train.py", *arguments(small_world), *RUN, "--validation.every", "1")
    looks = ("--validation.subjects", "2", "--validation.images_per_prompt", "8", "--output", str(run))
    together = ("--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--process-id")
    signalled = ("tests/signalled.py", 4, "SIGTERM", "fairjax.training.watch:Watch.alive", "1")
    processes = [
        launch(argv[0], 4, *argv[1:], *looks, *together, "0"), launch(*signalled, *argv, *looks, *together, "1")
    ]  # fmt: skip
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == TO_GO_ON, error[-2000:]
    assert [row["step"] for row in lines(run)] == [1] and max(states(run)) == 1
    assert not (run / "validation.jsonl").exists()


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
def test_a_run_of_two_hosts_goes_on_on_one_and_one_of_one_on_two(runs, small_world, tmp_path):
    """A checkpoint is orbax's, of all hosts; it is restored onto whatever devices there are, by each its part."""
    to_one, to_two = (shutil.copytree(run, tmp_path / run.name) for run in (runs.two, runs.one))
    argv = ("train.py", *arguments(small_world), *RUN, "--training.steps", "4", "--resume", "--output")
    finish([launch(argv[0], 8, *argv[1:], str(to_one))])
    on_two(*argv, str(to_two))
    for run in (to_one, to_two):
        assert [row["step"] for row in lines(run)] == [1, 2, 3, 4]
    assert_trained_alike(to_one, to_two)


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


FOUND = "--coordinator", "a:1", "--num-processes", "4", "--process-id", "2"
AS_GIVEN = {
    "coordinator_address": "a:1", "num_processes": 4, "process_id": 2, "cluster_detection_method": "deactivate",
}  # fmt: skip
EIGHT = "0,1,2,3,4,5,6,7"


def slurm(tasks, nodes, gpus=None, visible=None):
    """What `srun` tells one of its tasks."""
    told = {
        "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": tasks, "SLURM_STEP_NUM_TASKS": tasks,
        "SLURM_STEP_NUM_NODES": nodes, "SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_GPUS_ON_NODE": gpus,
        "CUDA_VISIBLE_DEVICES": visible,
    }  # fmt: skip
    return {name: str(value) for name, value in told.items() if value is not None}


def joined(monkeypatch, environment, *argv):
    """What `jax.distributed.initialize` is told there; None where nobody is to be joined."""
    for name in {*os.environ}:
        if name.startswith(("JAX_", "SLURM_", "TPU_", "CUDA_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **told: calls.append(told))
    parser = argparse.ArgumentParser()
    cluster.add_options(parser)
    cluster.join(parser.parse_args(argv))
    return calls[0] if calls else None


@pytest.mark.parametrize(
    ("environment", "argv", "told"),
    [
        ({}, (), None),
        ({}, FOUND, AS_GIVEN),
        (slurm(4, 4, 8), FOUND, AS_GIVEN),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}, (), AS_GIVEN),
        ({"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, FOUND, AS_GIVEN),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, (), None),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, (), {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, (), {}),
        ({}, ("--distributed",), {}),
        (slurm(1, 1, 8, EIGHT), (), None),
        (slurm(1, 1, 8, EIGHT), ("--distributed",), {"local_device_ids": []}),
        (slurm(4, 4, 8, EIGHT), (), {"local_device_ids": []}),
        (slurm(4, 4, 8), (), {"local_device_ids": []}),
        (slurm(4, 4), (), {"local_device_ids": []}),  # GPUs, if any, that Slurm does not know
        (slurm(32, 4, 8, EIGHT), (), {}),
        (slurm(32, 4, 8, "5"), (), {"local_device_ids": []}),  # --gpus-per-task=1
        (slurm(8, 4, 8, "0,1,2,3"), (), {"local_device_ids": []}),
        (slurm(8, 4), (), {}),
        (slurm(8, 4, 8, EIGHT) | {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3"}, (), {}),
    ],
)
def test_each_process_knows_the_others_and_its_own_devices(environment, argv, told, monkeypatch):
    """No options stand for what JAX finds itself; an empty list of devices for all that the process sees."""
    assert joined(monkeypatch, environment, *argv) == told


@pytest.mark.parametrize(("tasks", "visible"), [(8, EIGHT), (8, None), (64, EIGHT), (9, EIGHT)])
def test_a_slurm_step_that_would_leave_gpus_idle_is_one_line(tasks, visible, monkeypatch):
    """JAX gives each task one of the node's GPUs: two tasks would have two of eight."""
    both = r"one task a node \(srun --ntasks-per-node=1\), .* or one a GPU \(srun --ntasks-per-node=8\)$"
    with pytest.raises(UserError, match=rf"^SLURM_STEP_NUM_TASKS = {tasks} on 4 nodes of 8 GPUs: start {both}"):
        joined(monkeypatch, slurm(tasks, 4, 8, visible))


@pytest.mark.parametrize(
    "argv", [["--distributed"], [*FOUND[:1], "localhost:{}", "--num-processes=1", "--process-id=0"]]
)
def test_the_only_task_of_a_node_has_all_of_its_gpus(argv):
    """As JAX itself understands it, that would else make the first visible alone."""
    program = (
        "import argparse, sys, jax; from fairjax import cluster; parser = argparse.ArgumentParser();"
        "cluster.add_options(parser); cluster.join(parser.parse_args());"
        "print(jax.process_count(), jax.config.read('jax_cuda_visible_devices'))"
    )
    port = str(free_port())
    environment = os.environ | slurm(1, 1, 8, EIGHT) | {"JAX_COORDINATOR_PORT": port, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, *(part.format(port) for part in argv)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "1 all"
