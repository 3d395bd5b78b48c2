"""What one of two processes finds where something befalls only one: a program that tests/test_cluster.py starts twice.

    python tests/two_hosts.py PORT PROCESS FOLDER

Prints a JSON object.
"""

import contextlib
import errno
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from fairjax import checkpoints, parallel
from fairjax.checkpoints import Checkpoints, Unsaved
from fairjax.program import UserError
from fairjax.training.interruption import Interrupted, interruption

GIB = 1 << 30


class Card:
    """A GPU that is not here, of which the second host has less left."""

    platform = "gpu"

    def __eq__(self, other):  # one of this program's devices
        return True

    def memory_stats(self):
        return {"bytes_limit": 80 * GIB, "bytes_in_use": (1 + jax.process_index()) * GIB}


def memory():
    """What is left, in GiB."""
    return parallel.memory_left(SimpleNamespace(devices=np.array([Card()]), local_devices=[Card()])) / GIB


def locked(folder):
    """What is said where another program is in the folder of the first host."""
    with contextlib.ExitStack() as stack:
        if parallel.is_first():
            stack.enter_context(parallel._locked(folder))
        parallel.wait_for_all("locked")
        try:
            with parallel.alone(folder):
                return None
        except UserError as error:
            return str(error)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def saved(folder):
    """Steps of the newest checkpoint, after each of three of which the first host's disk does not take the second and
    the third, and what was restored of the last that it took."""
    mesh, latest, told = parallel.mesh(), [], []
    states = [parallel.replicate({"w": np.full(8, n, np.float32), "n": np.int32(n)}, mesh) for n in range(5)]
    kept = Checkpoints(folder, keep=2)
    for step, spoilt in ((1, None), (2, "_seal"), (3, "save"), (4, None)):
        usual = checkpoints._seal, kept._manager.save
        if parallel.is_first() and spoilt == "_seal":
            checkpoints._seal = full
        if parallel.is_first() and spoilt == "save":
            kept._manager.save = full
        try:
            kept.save(step, states[step])
            kept.finish()
        except Unsaved as error:
            told.append(str(error))
        checkpoints._seal = usual[0]
        latest.append(kept.latest())
    kept.close()
    again = Checkpoints(folder, keep=2)
    restored = again.restore(4, states[0])
    again.close()
    assert restored["w"].sharding == states[0]["w"].sharding
    return {"latest": latest, "told": told, "restored": [float(parallel.fetch(restored[key]).sum()) for key in "nw"]}


def ended(start=500):
    """Before which step a run ends that goes on from `start`, where the second host was asked to before the first."""
    with interruption() as asked:
        if not parallel.is_first():
            os.kill(os.getpid(), signal.SIGTERM)
        return next((step for step in range(start, start + 5) if asked.on_any_host()), None)


def measured(batches=4):
    """How many images are told of before a measuring ends, of which the second host alone was asked to after three."""
    told = []
    with interruption() as asked, contextlib.suppress(Interrupted):
        checking = asked.checking(told.append)
        for number in range(batches):
            if number == 2 and not parallel.is_first():
                os.kill(os.getpid(), signal.SIGTERM)
            checking(8)
    return sum(told)


def compiled(folder):
    """Whether what is compiled is kept: where each host has a folder of its own for it, where all have one, where that
    is a bucket, and where the second host was told to keep nothing."""
    kept = []
    for place, wanted in (
        (folder / str(jax.process_index()), True), (folder / "common", True), ("gs://bucket/compiled", True),
        (folder / "common", parallel.is_first()),
    ):  # fmt: skip
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_enable_compilation_cache", wanted)
        parallel.share_compiled()
        kept.append(jax.config.jax_enable_compilation_cache)
    return kept


def main(port, process, folder):
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(f"localhost:{port}", 2, int(process), cluster_detection_method="deactivate")
    found = {
        "memory": memory(), "locked": locked(Path(folder)), "saved": saved(Path(folder) / "checkpoints"),
        "ended": ended(), "measured": measured(),
        "compiled": compiled(Path(folder) / "compiled"),
    }  # fmt: skip
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # JAX would wait for the other
