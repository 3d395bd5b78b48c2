"""One loop for networks that are trained from the start: AdamW or Muon, a warm cosine, EMA weights, resumable."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib
from rich.console import Console

from fairjax import parallel
from fairjax.checkpoints import Checkpoints
from fairjax.models.functional import Params
from fairjax.progress import bars

Loss = Callable[[Params, Any, jax.Array], tuple[jax.Array, tuple[dict[str, jax.Array], Params]]]
"""(params, batch, key) -> loss, (metrics to show, updated batch statistics: a part of the tree, or {})."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """How long and how fast one stage is trained."""

    steps: int
    batch_size: int
    learning_rate: float
    matrix_learning_rate: float | None = None  # of Muon, for matrices and convolutions; None: AdamW for all
    weight_decay: float = 1e-2
    ema: float = 0.995
    save_every: int = 200


def overlay(params: Params, updates: Params) -> Params:
    """`params` with the leaves of the (partial) tree `updates` in place of its own."""
    return {
        name: (overlay(value, updates[name]) if isinstance(value, dict) else updates[name])
        if name in updates
        else value
        for name, value in params.items()
    }


def _optimizer(plan: Fit) -> optax.GradientTransformation:
    """AdamW, or with a `matrix_learning_rate` Muon (Jordan, 2024): a third fewer steps where matrices are small."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(100, plan.steps // 5), plan.steps, 0.02)
    rate = lambda step: plan.learning_rate * shape(step)  # noqa: E731
    if plan.matrix_learning_rate is None:
        decayed = lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)  # noqa: E731
        adamw = optax.adamw(rate, weight_decay=plan.weight_decay, mask=decayed)
        return optax.chain(optax.clip_by_global_norm(1.0), adamw)

    def matrices(tree: Params) -> Params:
        # kernels are [..., in, out]: what maps inputs to outputs, and None what is left to Adam
        return jax.tree.map(
            lambda p: contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1) if p.ndim > 1 else None, tree
        )

    muon = contrib.muon(
        lambda step: plan.matrix_learning_rate * shape(step),
        adam_learning_rate=rate,
        muon_weight_dimension_numbers=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def fit(
    name: str, folder: Path, plan: Fit, params: Params, loss: Loss, batch: Callable[[int], Any], key: jax.Array,
    console: Console,
) -> Params:  # fmt: skip
    """Trains `params` and returns their exponential moving average.

    Args:
        batch: the batch of a step, a pure function of the step, so that a resumed run sees what it would have seen.
        key: folded by step, then given to `loss`.
    """
    optimizer = _optimizer(plan)
    mesh = parallel.mesh()

    @jax.jit
    def update(state: dict[str, Any], step: jax.Array, batch: Any) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        grads, (metrics, statistics) = jax.grad(loss, has_aux=True)(
            state["params"], batch, jax.random.fold_in(key, step)
        )
        updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
        params = overlay(optax.apply_updates(state["params"], updates), statistics)
        decay = jnp.minimum(plan.ema, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state["ema"], params)
        return {"params": params, "ema": ema, "optimizer": optimizer_state}, metrics

    state = parallel.replicate({"params": params, "ema": params, "optimizer": optimizer.init(params)}, mesh)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            state = checkpoints.restore(start, state)
        with bars(console) as progress:
            task = progress.add_task(name, total=plan.steps, completed=start, note="")
            shown, since, metrics = time.monotonic(), start, {}
            for step in range(start, plan.steps):
                examples = parallel.share_out(batch(step), mesh)  # made while the step before runs
                # With anything else under way, devices that XLA simulates on few cores can starve each other in a
                # collective.
                jax.block_until_ready((state, metrics, examples))
                state, metrics = update(state, step, examples)
                if time.monotonic() - shown > 10 or step + 1 == plan.steps:
                    text = "  ".join(f"{k} {float(v):.4g}" for k, v in metrics.items())
                    speed = (step + 1 - since) * plan.batch_size / (time.monotonic() - shown)
                    text += f"  {speed:.0f} images/s"
                    progress.update(task, completed=step + 1, note=text)
                    if not console.is_terminal:
                        console.print(f"{name} {step + 1}/{plan.steps}  {text}", highlight=False)
                    shown, since = time.monotonic(), step + 1
                if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
                    checkpoints.save(step + 1, state)
    return state["ema"]
