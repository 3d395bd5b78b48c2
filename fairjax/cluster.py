"""Several hosts as one: each runs the same program, and they join before JAX starts.

Without jax imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os

from fairjax.schema import UserError

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
        UserError: one line, for options that are incomplete or no numbers, or where the others do not answer.
    """
    given = {name: getattr(options, name) or os.environ.get(variable) for name, (variable, *_) in _FLAGS.items()}
    if any(given.values()):
        arguments = _explicit(given)
    elif options.distributed or _evident():
        arguments = {}
    else:
        return
    import jax

    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--distributed: the processes did not come together: {reason}") from None


def _explicit(given: dict[str, str | None]) -> dict[str, str | int]:
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
    return {"coordinator_address": given["coordinator"], **numbers}


def _evident() -> bool:
    """Whether the environment says that this is one of several processes that were started together."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # of an srun, not of the allocation
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return (tasks.isdecimal() and int(tasks) > 1) or len(hosts) > 1
