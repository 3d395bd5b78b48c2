"""How large each solver step's part of the gradient is: the paper's study (Shen et al., 2024, section 4.2, figure 3).

    python -m benchmarks.gradients --steps 25 --batches 4 --picture docs/gradients.png

Every solver step gets an adapter of its own, all alike, so that the gradient comes out step by step, in four ways:
`exact`, through the whole chain; `unscaled`, with the path through the network's image input cut and nothing else done;
`adjusted` and `uniform`, as finetuning has them. In the embedded world, at the start of the default finetuning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.evidence import COLOURS
from fairjax import parallel
from fairjax.adapters import bundle as bundles
from fairjax.config import Experiment
from fairjax.diffusion import chain
from fairjax.diffusion.guidance import Conditioning, guided
from fairjax.pipeline import image_keys
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning
from fairjax.training.step import NOISE, Batch, Frozen

WAYS = {"exact": "o", "unscaled": "s", "adjusted": "^", "uniform": "D"}
"""With what they are drawn as."""


def by_step(finetuning: Finetuning, way: str, num_steps: int) -> Callable[..., Any]:
    """(an adapter for each solver step, what is frozen, a batch) -> gradient of the former."""
    step, pipeline = finetuning._step, finetuning.pipeline
    scale, images = finetuning.config.training.guidance_scale, finetuning.config.training.images_per_prompt

    def loss(stack: Any, frozen: Frozen, batch: Batch) -> jax.Array:
        timesteps = frozen.table.steps.timestep[num_steps - 1]

        def denoise(params: Any, x: jax.Array, timestep: jax.Array, context: Any) -> jax.Array:
            # all images of a call are at the same step: there are as many terms at a time as images
            own = jax.tree.map(lambda leaf: leaf[jnp.argmax(timesteps == timestep[0])], params["stack"])
            weights = bundles.merge_unet(params["unet"], own)
            return guided(pipeline.unet.apply, scale)(weights, x, timestep, context)

        rows = jnp.stack([jnp.zeros(images, int), jnp.arange(images)], axis=1)
        noise = pipeline.noise(image_keys(jax.random.fold_in(batch.key, NOISE), rows))
        states = pipeline.encode(frozen.pipeline, {}, jnp.concatenate([batch.empty, batch.ids]))
        context = Conditioning(*(jnp.repeat(states[i : i + 1], images, axis=0) for i in (0, 1)))
        params = {"stack": stack, "unet": frozen.pipeline["unet"]}
        latents = chain.sample(denoise, params, context, noise, frozen.table, num_steps, gradient=way)
        original = step.sampler(frozen, batch)({}, batch.plain_ids)
        return step.total_loss(pipeline.decode(frozen.pipeline, latents), original, frozen, batch)[0]

    replicated = parallel.REPLICATED
    return parallel.spread(jax.grad(loss), finetuning.mesh, (replicated,) * 3, replicated)


def sizes(gradient: Any) -> np.ndarray:
    """Norms [num_steps] of the parts."""
    return np.sqrt(sum(np.square(leaf).reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(gradient)))


def total(gradient: Any) -> np.ndarray:
    return np.concatenate([leaf.sum(0).ravel() for leaf in jax.tree.leaves(gradient)])


def draw(timesteps: np.ndarray, found: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Each part's share of the largest, from the first solver step, at the left, to the last."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (way, marker), colour in zip(WAYS.items(), COLOURS, strict=False):
        shares = found[way] / found[way].max()
        spread = 1 / shares.min()
        told = f"{spread:,.0f}" if spread >= 100 else f"{spread:.1f}"
        panel.plot(
            timesteps, shares, marker + "-", color=colour, markersize=4, label=f"{way}: {told} times the smallest"
        )
    panel.set_yscale("log")
    panel.invert_xaxis()
    panel.set(xlabel="timestep", ylabel="size of the gradient's part, the largest is 1", title=title)
    panel.title.set_fontsize(11)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25, help="solver steps (default: 25)")
    parser.add_argument("--batches", type=int, default=4, help="prompts, each with 16 images (default: 4)")
    parser.add_argument("--picture", type=Path, help="a PNG to draw")
    options = parser.parse_args()
    parallel.prepare()
    changes = {"num_steps": (options.steps,) * 2, "prompts_per_step": 1, "grad_steps": None}
    config = load(Experiment, None, {f"training.{name}": value for name, value in changes.items()})
    finetuning, console = Finetuning(config, parallel.mesh(1)), Console()
    state = finetuning.initial()
    stack = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], options.steps, axis=0), state.bundle)
    found, sums = {}, {}
    for way in WAYS:
        program = by_step(finetuning, way, options.steps)
        gradients = [
            jax.device_get(program(stack, finetuning._frozen, finetuning.batch(number, state.bundle)[0]))
            for number in range(options.batches)
        ]
        found[way] = np.mean([sizes(gradient) for gradient in gradients], axis=0)
        sums[way] = [total(gradient) for gradient in gradients]
        console.print(f"{way}: done", style="dim")
    table = Table(title=f"size of each step's part of the gradient, mean over {options.batches} x 16 images")
    table.add_column("timestep", justify="right")
    for way in WAYS:
        table.add_column(way, justify="right")
    timesteps = np.asarray(finetuning._table.steps.timestep)[options.steps - 1, : options.steps]
    for number, timestep in enumerate(timesteps):
        table.add_row(str(timestep), *(f"{found[way][number]:.3g}" for way in WAYS))
    table.add_section()
    table.add_row("largest / smallest", *(f"{found[way].max() / found[way].min():.3g}" for way in WAYS))
    alike = [np.mean([_cosine(a, b) for a, b in zip(sums[way], sums["adjusted"], strict=True)]) for way in WAYS]
    table.add_row("cosine to adjusted", *(f"{value:.2f}" for value in alike))
    console.print(table)
    if options.picture:
        title = f"The gradient of {options.steps} solver steps, step by step, of {options.batches} x 16 images"
        draw(timesteps, found, title, options.picture)
        console.print(f"wrote {options.picture}")


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


if __name__ == "__main__":
    main()
