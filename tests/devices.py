"""How many devices XLA simulates, and how it compiles for them; imports nothing, since it is set before jax starts."""


def flags(count):
    """Of `count` devices. LLVM does not optimize the machine code, which would be a third of the time of the tests."""
    return f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
