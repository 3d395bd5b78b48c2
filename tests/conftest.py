"""Every test runs on the CPU, with eight simulated devices, and refuses implicit rank promotion.

What one test has compiled, others read from a folder that lasts as long as the tests.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")

import jax  # noqa: E402  (the flags above must be set before jax starts)

jax.config.update("jax_numpy_rank_promotion", "raise")

_compiled = tempfile.mkdtemp(prefix="fairjax-tests-")
atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _compiled)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
