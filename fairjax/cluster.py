"""Several hosts as one: each runs the same program, and they join before JAX starts.

Without jax imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os

from fairjax.program import UserError

_FLAGS = {
    "coordinator": ("JAX_COORDINATOR_ADDRESS", "HOST:PORT", "where process 0 can be reached"),
    "num_processes": ("JAX_NUM_PROCESSES", "N", "how many processes there are"),
    "process_id": ("JAX_PROCESS_ID", "I", "which of them this is, from 0"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a program that may run on several hosts."""
    group = parser.add_argument_group(
        "several hosts",
        "Cloud TPU slices and Slurm steps are known by their environment, others by these (docs/pods.md)",
    )
    group.add_argument(
        "--distributed", action="store_true", help="join the other hosts of a Cloud TPU slice or another known cluster"
    )
    for name, (variable, placeholder, about) in _FLAGS.items():
        group.add_argument(
            f"--{name.replace('_', '-')}", metavar=placeholder, help=f"{about} (default: the environment's {variable})"
        )


def join(options: argparse.Namespace) -> None:
    """Joins the other processes, if there are any; to be called before anything asks JAX for its devices.

    Raises:
        UserError: one line, for options that are incomplete or no numbers, for a Slurm step that would leave GPUs idle,
            or where the others do not answer.
    """
    given = {name: getattr(options, name) or os.environ.get(variable) for name, (variable, *_) in _FLAGS.items()}
    if any(given.values()):
        arguments = _explicit(given)
    elif options.distributed or _evident():
        arguments = _gpus_of_slurm()
    else:
        return
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM from `training.interruption`
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--distributed: the processes did not come together: {reason}") from None
    from fairjax import parallel

    parallel.share_compiled()


def _explicit(given: dict[str, str | None]) -> dict[str, str | int]:
    """As given, and nothing is to be taken from Slurm or MPI: JAX would take one GPU for each process, too."""
    for name, value in given.items():
        if value is None:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in _FLAGS)
            raise UserError(f"--{name.replace('_', '-')} is missing: {flags} go together")
    numbers = {}
    for name in ("num_processes", "process_id"):
        if not given[name].isdecimal():
            raise UserError(f"--{name.replace('_', '-')} = {given[name]!r} must be a whole number")
        numbers[name] = int(given[name])
    count, number = numbers["num_processes"], numbers["process_id"]
    if number >= count:
        raise UserError(f"--process-id = {number} must be below --num-processes = {count}")
    address, _, port = given["coordinator"].rpartition(":")
    if not address or not port.isdecimal():
        raise UserError(f"--coordinator = {given['coordinator']!r} must be HOST:PORT")
    return {"coordinator_address": given["coordinator"], **numbers, "cluster_detection_method": "deactivate"}


def _gpus_of_slurm() -> dict[str, list[int]]:
    """Which GPUs are this process's, where JAX would be wrong: of a Slurm step it takes one for each task.

    An empty list leaves it all that it sees: of a node's only task, or of tasks to which Slurm has dealt them out.
    """
    tasks, nodes, gpus = (_number(f"SLURM_{name}") for name in ("STEP_NUM_TASKS", "STEP_NUM_NODES", "GPUS_ON_NODE"))
    if not (tasks and nodes) or os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = len(visible.split(",")) if visible else gpus
    if tasks == nodes or (gpus and seen * tasks == gpus * nodes):
        return {"local_device_ids": []}
    if gpus and tasks != gpus * nodes:
        raise UserError(
            f"SLURM_STEP_NUM_TASKS = {tasks} on {nodes} nodes of {gpus} GPUs: start one task a node "
            f"(srun --ntasks-per-node=1), which has all of its GPUs, or one a GPU (srun --ntasks-per-node={gpus})"
        )
    return {}


def _number(variable: str) -> int:
    """0 where the environment has none."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else 0


def _evident() -> bool:
    """Whether the environment says that this is one of several processes that were started together."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    tasks, slices = _number("SLURM_STEP_NUM_TASKS"), _number("MEGASCALE_NUM_SLICES")  # of an srun, not its allocation
    return tasks > 1 or slices > 1 or len(hosts) > 1
