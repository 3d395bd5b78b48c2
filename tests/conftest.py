"""Every test runs on the CPU, with eight simulated devices, and refuses implicit rank promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")

import jax  # noqa: E402  (the flags above must be set before jax starts)
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of small models, for all tests that read them."""
    import small_models

    folder = tmp_path_factory.mktemp("models")
    small_models.write(folder)
    return folder
