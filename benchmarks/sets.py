"""How many sets of labels it takes: targets from few of them against those from very many, on the base model's images.

    python -m benchmarks.sets

The embedded model draws people of trained occupations; their targets are those of gender and skin tone together, eight
even cells. What `loss.num_sets` decides is how noisy the estimate is of the probability that an image is given a class.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import fairjax
from fairjax.fairness.targets import targets
from fairjax.portraits.occupations import TRAINED

ATTRIBUTES = ("gender", "skin_tone")


def estimated(probs, key, num_sets, threshold):
    """Of p prompts' images: labels [2, p, n], -1 where unsure, and by attribute the probabilities [p, n, classes]."""
    cells = probs[0].shape[-1] * probs[1].shape[-1]
    even, valid = jnp.full(cells, 1 / cells), jnp.ones(probs[0].shape[1], bool)

    def one(key, *probs):
        return targets(probs, even, valid, key, num_sets=num_sets, threshold=threshold)

    found = jax.vmap(one)(jax.random.split(key, len(probs[0])), *probs)
    return jnp.stack(found.labels), found.q


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, nargs="+", default=[10, 100, 500, 1000], help="(default: 10 100 500 1000)")
    parser.add_argument("--truth", type=int, default=30_000, help="how many sets are taken for the truth")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--images", type=int, default=16, help="of each prompt (default: 16, as in a step)")
    parser.add_argument("--repeats", type=int, default=20, help="estimates of each kind (default: 20)")
    parser.add_argument("--threshold", type=float, default=0.3, help="(default: 0.3, as gender_skin.yaml)")
    options = parser.parse_args()

    pipeline = fairjax.Pipeline.from_pretrained("portraits")
    asked = [f"a photo of the face of a {who}, a person" for who in TRAINED[: options.prompts]]
    seen = fairjax.classify(pipeline.generate(asked, num_images=options.images, seed=0))
    probs = tuple(jnp.asarray(seen.probs[name]) for name in ATTRIBUTES)
    estimate = jax.jit(estimated, static_argnums=(2, 3))
    labels, q = estimate(probs, jax.random.key(0), options.truth, options.threshold)
    given = np.mean(np.asarray(labels) >= 0)
    print(f"{options.prompts} prompts of {options.images} images; at a threshold of {options.threshold}, ", end="")
    print(f"{given:.0%} of the labels are given\n")
    print("| sets | error of a probability | labels given or withheld otherwise | labels that say another class |")
    print("| --- | --- | --- | --- |")
    for count in options.sets:
        errors, withheld, others = [], [], []
        for repeat in range(options.repeats):
            got, estimates = estimate(probs, jax.random.key(1 + repeat), count, options.threshold)
            errors.append(np.mean([jnp.abs(a - b).mean() for a, b in zip(estimates, q, strict=True)]))
            withheld.append(jnp.mean((got >= 0) != (labels >= 0)))
            others.append(jnp.mean((got >= 0) & (labels >= 0) & (got != labels)))
        print(f"| {count:,} | {np.mean(errors):.4f} | {np.mean(withheld):.1%} | {np.mean(others):.2%} |")


if __name__ == "__main__":
    main()
