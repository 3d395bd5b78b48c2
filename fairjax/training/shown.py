"""What the images of a training step show, for the log; `fairjax/fairness/metrics.py` measures it on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.fairness.attributes import joint_cells


def shown(
    attributes: tuple[str, ...], probs: list[jax.Array], has_face: jax.Array, distributions: jax.Array
) -> dict[str, jax.Array]:
    """What images show, of each attribute and of all jointly; means over p prompts.

    The bias, and the distance (total variation) from what is wished. A prompt without a face is left out, of
    distances one that asks for nobody, too; where all are, it is NaN.

    Args:
        attributes: those of the target.
        probs: of each of them, class probabilities [p, n, classes].
        has_face: [p, n].
        distributions: what is wished of them jointly, [p, cells]; zeros where nobody is asked for.
    """
    sizes = [prob.shape[-1] for prob in probs]
    cells = distributions.reshape(-1, *sizes)
    seen, wished = {}, {}
    for place, (name, prob) in enumerate(zip(attributes, probs, strict=True)):
        seen[name] = jax.nn.one_hot(prob.argmax(-1), sizes[place]) * has_face[..., None]
        wished[name] = cells.sum([axis + 1 for axis in range(len(sizes)) if axis != place])
    if len(sizes) > 1:
        both = " x ".join(attributes)
        seen[both], wished[both] = jax.vmap(joint_cells)(list(seen.values())), distributions
    asked, found = distributions.any(axis=1), {}
    for name, one in seen.items():
        counts = one.sum(1)
        share = counts / counts.sum(1, keepdims=True)
        first, second = np.triu_indices(share.shape[-1], k=1)
        found[f"bias/{name}"] = jnp.nanmean(jnp.abs(share[:, first] - share[:, second]).mean(1))
        distance = jnp.abs(share - wished[name]).sum(1) / 2
        found[f"distance/{name}"] = jnp.nanmean(jnp.where(asked, distance, jnp.nan))
    return found
