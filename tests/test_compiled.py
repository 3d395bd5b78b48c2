"""What was compiled is kept, whoever else keeps theirs beside it, and whatever was killed on its way there."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, warnings
warnings.simplefilter("error")
if sys.argv[1] == "ours":
    from fairjax import parallel
    parallel.prepare()
import jax
jax.config.update("jax_raise_persistent_cache_errors", True)
jax.jit(lambda x: x + float(sys.argv[2]))(0.0)
"""


def compile_one(which, number, folder, **environment):
    """Runs a program of fairjax, or of someone else, that compiles something; what is kept after it."""
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": ""}
    without = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    argv = [sys.executable, "-c", PROGRAM, which, str(number)]
    subprocess.run(argv, env=without | always | environment, check=True, timeout=120)
    return {path.name for path in folder.glob("*-cache")}


def test_a_folder_that_other_programs_of_jax_use_keeps_ours_too(tmp_path):
    """They keep theirs without a limit, and so without the time of its last use."""
    theirs = compile_one("theirs", 1, tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    ours = compile_one("ours", 2, tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert theirs < ours


@pytest.mark.faults("a program killed while it keeps what it compiled")
def test_an_entry_without_its_time_keeps_nothing_from_being_kept(tmp_path):
    """As a program leaves it that is killed between the two."""
    folder = tmp_path / "fairjax" / "compiled"
    before = compile_one("ours", 1, folder, XDG_CACHE_HOME=str(tmp_path))
    times = list(folder.glob("*-atime"))
    assert before and len(times) == len(before)
    times[0].unlink()
    assert before < compile_one("ours", 2, folder, XDG_CACHE_HOME=str(tmp_path))


@pytest.mark.parametrize(("cores", "devices"), [(5, 4), (20, 8)])
def test_a_cpu_is_as_many_devices_as_it_has_cores(cores, devices):
    """A power of two of them, eight at most: what makes a step on a CPU half as long again is seen nowhere else."""
    program = (
        f"import os; os.sched_getaffinity = lambda _: range({cores})\n"
        "import fairjax; fairjax.prepare(); fairjax.prepare()\nimport jax; print(jax.device_count())"
    )
    environment = os.environ | {"XLA_FLAGS": ""}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout == f"{devices}\n", run.stderr


@pytest.mark.parametrize("variable", ["JAX_NUM_CPU_DEVICES=3", "XLA_FLAGS=--xla_force_host_platform_device_count=3"])
def test_a_number_of_devices_that_a_user_has_set_stays(variable):
    program = "import fairjax; fairjax.prepare()\nimport jax; print(jax.device_count()); fairjax.prepare()"
    name, _, value = variable.partition("=")
    environment = os.environ | {"XLA_FLAGS": ""} | {name: value}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.returncode) == ("3\n", 0), run.stderr


def test_who_prepares_too_late_is_told_so():
    """As in a notebook, whose devices stay as they are."""
    program = (
        "import os; os.sched_getaffinity = lambda _: range(4)\nimport jax, fairjax; jax.devices()\n"
        "try: fairjax.prepare()\nexcept RuntimeError as error: print(error, jax.device_count())"
    )
    environment = os.environ | {"XLA_FLAGS": ""}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout == "fairjax.prepare() must be called before JAX computes anything; it has started 1\n", run.stderr
