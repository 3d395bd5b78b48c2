"""Transport for 1000 count vectors: this solver against a loop over POT's network simplex, in one run.

    python -m benchmarks.transport --images 64 --sets 1000

The costs are those of experiment 4: gender x race x age, 16 joint cells. Then the same experiment's targets within its
training step on the embedded model, as a share of the step's time (`--config`). The compiled programs are searched for
whatever would leave the device.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import ot

from fairjax import parallel
from fairjax.config import Experiment
from fairjax.fairness.targets import joint_cost
from fairjax.fairness.transport import transport_sets
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning


def seconds(run, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times), result


def stays(compiled):
    """The compiled program, in which nothing is sent to the host or asked of it."""
    text = compiled.as_text()
    leaving = [name for name in ("callback", "infeed", "outfeed", " send(", " recv(", "host_compute") if name in text]
    assert not leaving, leaving
    return compiled


def step_and_targets(path, repeats):
    """Seconds of a whole training step of an experiment, and of its targets alone; how many images it has."""
    finetuning = Finetuning(load(Experiment, path), parallel.mesh(1))
    state = finetuning.initial()
    batch, _ = finetuning.batch(0, state.bundle)
    step, frozen = finetuning.compiled(), finetuning._frozen
    jax.block_until_ready(step(state, frozen, batch))  # compiles
    whole, _ = seconds(lambda: step(state, frozen, batch), repeats)

    shape = (len(batch.ids), finetuning.config.training.images_per_prompt)
    sizes = {attribute.name: len(attribute.classes) for attribute in finetuning.attributes}
    rng = np.random.default_rng(0)
    probs = [
        jnp.asarray(rng.dirichlet([0.3] * sizes[name], shape), jnp.float32) for name in finetuning._step.attributes
    ]
    keys = jax.random.split(jax.random.key(0), shape[0])
    arguments = (*probs, batch.distributions, jnp.ones(shape, bool), keys)
    assign = stays(jax.jit(finetuning._step._targets).lower(*arguments).compile())
    alone, _ = seconds(lambda: assign(*arguments), repeats)
    return whole, alone, shape


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5, help="the fastest of this many runs counts")
    parser.add_argument("--config", default="configs/portraits/gender_skin_age.yaml", help="whose step is timed")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    probs = tuple(rng.dirichlet([0.3] * k, options.images).astype(np.float32) for k in (2, 4, 2))
    counts = rng.multinomial(options.images, np.full(16, 1 / 16), size=options.sets)
    cost, valid = joint_cost(probs), jnp.ones(options.images, bool)
    cost64 = np.asarray(cost, np.float64)

    def pot():
        ones = np.ones(options.images)
        return np.array([(ot.emd(ones, row, cost64) * cost64).sum() for row in counts.astype(np.float64)])

    on_device = jnp.asarray(counts)
    solver = stays(jax.jit(transport_sets).lower(cost, on_device, valid).compile())
    pot_seconds, pot_cost = seconds(pot, options.repeats)
    our_seconds, assignment = seconds(lambda: solver(cost, on_device, valid), options.repeats)
    our_cost = np.take_along_axis(cost64, np.asarray(assignment).T, axis=1).sum(axis=0)

    print(f"{options.sets} sets, {options.images} images, 16 classes, on {jax.devices()[0].device_kind}")
    print(f"POT, one after another: {pot_seconds:.3f} s   fairjax: {our_seconds:.3f} s")
    print(f"ratio fairjax / POT: {our_seconds / pot_seconds:.2f}")
    print(f"largest difference in cost: {np.abs(our_cost - pot_cost).max():.1e}")

    whole, alone, (prompts, images) = step_and_targets(options.config, options.repeats)
    print(f"{options.config}: a step of {prompts} x {images} images {whole:.3f} s")
    print(f"its targets, of 500 sets, {alone:.4f} s: {alone / whole:.2%}")


if __name__ == "__main__":
    main()
