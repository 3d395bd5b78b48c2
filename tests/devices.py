"""How many devices XLA simulates, and how it compiles for them; imports nothing, since it is set before jax starts."""


def flags(count):
    """Of `count` devices. LLVM does not optimize the machine code, which would be a third of the time of the tests.

    Where a machine stands still for a while, devices wait for each other for ten minutes in place of 40 s.
    """
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    return f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0 {patience}"
