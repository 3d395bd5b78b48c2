"""Programs that are run apart, to be interrupted: a small run of `train.py`, and what it has left so far."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from devices import flags
from safetensors.numpy import load_file
from small_world import arguments

from fairjax.convert.adapters import LORA_FILE

RUN = (
    "--training.prompts_per_step", "2", "--training.images_per_prompt", "4", "--training.num_steps", "[2, 3]",
    "--evaluation.subjects", "1", "--evaluation.images_per_prompt", "8", "--evaluation.num_steps", "2",
    "--evaluation.batch_size", "8",
)  # fmt: skip


def launch(world, folder, *more, program="train.py", signalled=()):
    """Starts a program; `signalled` says by which signal it is found where, as signalled.py has it."""
    environment = os.environ | {"XLA_FLAGS": flags(2)}
    by_itself = ("tests/signalled.py", *signalled) if signalled else ()
    command = [sys.executable, *by_itself, program, *arguments(world), *RUN, "--output", str(folder), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Waits for it, and expects that it succeeds; what it printed."""
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-2000:]
    return output, error


@contextlib.contextmanager
def full_disk(free=0):
    """No file of this process grows beyond `free` bytes; what the system says then is not what it says of a full disk,
    and comes from the same places."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def lines(folder):
    """The log so far. Its last line may be cut off, where the program was killed."""
    path, rows = folder / "log.jsonl", []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def numbers(folder):
    """The log so far, without what a machine takes for it."""
    return [{name: value for name, value in row.items() if name not in MACHINE} for row in lines(folder)]


MACHINE = ("seconds", "images_per_second", "devices", "memory")


def states(folder):
    """What the checkpoints have: by step, every leaf by its path."""
    read, found = ocp.StandardCheckpointer(), {}
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdecimal():
            saved = read.metadata(path / "default").item_metadata.tree
            onto = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)  # not onto devices of other hosts
            leaves = jax.tree_util.tree_leaves_with_path(read.restore(path / "default", onto))
            found[int(path.name)] = {jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in leaves}
    return found


def assert_the_same_run(one, other):
    """Bit for bit: checkpoints, with adapter, average, optimizer and step, what is exported, and what was logged."""
    assert numbers(one) == numbers(other)
    wished, found = states(one), states(other)
    assert max(wished) == max(found)
    wished["adapter"], found["adapter"] = (load_file(run / "adapter" / LORA_FILE) for run in (one, other))
    for when in wished.keys() & found.keys():  # one that was ended on its way has a checkpoint of there
        assert wished[when].keys() == found[when].keys()
        for name, leaf in wished[when].items():
            np.testing.assert_array_equal(found[when][name], leaf, f"{name} of {when}", strict=True)


def wait_for_steps(process, folder, count):
    while len(lines(folder)) < count:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.05)
