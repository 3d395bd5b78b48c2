"""Transport for 1000 count vectors: this solver against a loop over POT's network simplex, in one run.

    python -m benchmarks.transport --images 64 --sets 1000

The costs are those of experiment 4: gender x race x age, 16 joint cells.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import ot

from fairjax.fairness.targets import joint_cost
from fairjax.fairness.transport import transport_sets


def seconds(run, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times), result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5, help="the fastest of this many runs counts")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    probs = tuple(rng.dirichlet([0.3] * k, options.images).astype(np.float32) for k in (2, 4, 2))
    counts = rng.multinomial(options.images, np.full(16, 1 / 16), size=options.sets)
    cost, valid = joint_cost(probs), jnp.ones(options.images, bool)
    cost64 = np.asarray(cost, np.float64)

    def pot():
        ones = np.ones(options.images)
        return np.array([(ot.emd(ones, row, cost64) * cost64).sum() for row in counts.astype(np.float64)])

    solver = jax.jit(transport_sets).lower(cost, jnp.asarray(counts), valid).compile()
    pot_seconds, pot_cost = seconds(pot, options.repeats)
    our_seconds, assignment = seconds(lambda: solver(cost, jnp.asarray(counts), valid), options.repeats)
    our_cost = np.take_along_axis(cost64, np.asarray(assignment).T, axis=1).sum(axis=0)

    print(f"{options.sets} sets, {options.images} images, 16 classes, on {jax.devices()[0].device_kind}")
    print(f"POT, one after another: {pot_seconds:.3f} s   fairjax: {our_seconds:.3f} s")
    print(f"ratio fairjax / POT: {our_seconds / pot_seconds:.2f}")
    print(f"largest difference in cost: {np.abs(our_cost - pot_cost).max():.1e}")


if __name__ == "__main__":
    main()
