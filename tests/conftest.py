"""Every test runs on the CPU, with eight simulated devices, and refuses implicit rank promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")

import jax  # noqa: E402  (the flags above must be set before jax starts)

jax.config.update("jax_numpy_rank_promotion", "raise")
