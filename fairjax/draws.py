"""What is drawn at random: by one generator, whichever a user has JAX draw with elsewhere."""

from __future__ import annotations

import jax


def key(seed: int) -> jax.Array:
    """The typed PRNG key of a seed, of JAX's usual generator also where JAX_DEFAULT_PRNG_IMPL names another.

    Of `rbg`, which is set on TPUs for its speed, the numbers depend on how many keys are drawn from at once, and so
    images and runs would on the number of devices.
    """
    return jax.random.key(seed, impl="threefry2x32")
