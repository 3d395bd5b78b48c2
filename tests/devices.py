"""How many devices XLA simulates, and how it compiles for them; imports nothing, since it is set before jax starts."""


def flags(count):
    """Of `count` devices. LLVM does not optimize the machine code, and does not get it by way of MLIR, which would be
    half of the time of the tests: they compile for longer than they compute.

    Where a machine stands still for a while, devices wait for each other for ten minutes in place of 40 s.
    """
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    quickly = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    return f"--xla_force_host_platform_device_count={count} {quickly} {patience}"
