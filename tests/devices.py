"""How many devices XLA simulates, and how it compiles for them; imports no jax, since it is set before jax starts."""

from importlib import metadata

OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false" if metadata.version("jaxlib").startswith("0.10.") else ""
"""XLA ends the process over a flag that it does not know, as that of jaxlib 0.11 does not know this one."""


def flags(count):
    """Of `count` devices. Compiling is most of the time of the tests, and code that runs once need not be fast.

    So LLVM does not optimize it, and XLA's older emitters of fused loops, which make less of it, halve what is left.
    Where a machine stands still for a while, devices wait for each other for ten minutes in place of 40 s.
    """
    compiling = f"--xla_backend_optimization_level=0 {OLDER_EMITTERS}"
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    return f"--xla_force_host_platform_device_count={count} {compiling} {patience}"
