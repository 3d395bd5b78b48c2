"""Programs that are run apart, to be interrupted: a small run of `train.py`, and what it has left so far."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time

from devices import flags
from small_world import arguments

RUN = (
    "--training.prompts_per_step", "2", "--training.images_per_prompt", "4", "--training.num_steps", "[2, 3]",
    "--evaluation.subjects", "1", "--evaluation.images_per_prompt", "8", "--evaluation.num_steps", "2",
    "--evaluation.batch_size", "8",
)  # fmt: skip


def launch(world, folder, *more):
    environment = os.environ | {"XLA_FLAGS": flags(2)}
    command = [sys.executable, "train.py", *arguments(world), *RUN, "--output", str(folder), *more]
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


def wait_for_steps(process, folder, count):
    while len(lines(folder)) < count:
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.05)
