"""What a finetuning carries from one step to the next."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fairjax.adapters.bundle import Bundle
from fairjax.config import TrainingSection


class State(NamedTuple):
    """Everything that must survive a kill, and nothing else: keys are folded from the seed and the step."""

    step: jax.Array  # int32 [], optimizer steps taken or skipped
    bundle: Bundle  # adapters, float32
    ema: Bundle  # their moving average: what is measured and exported
    optimizer: optax.OptState
    skipped: jax.Array  # int32 [], steps left out because a loss or a gradient was not finite


def optimizer(config: TrainingSection) -> optax.GradientTransformation:
    """AdamW at a constant rate, as the paper trains (section 5); a soft prompt and LoRA alike."""
    b1, b2 = config.betas
    return optax.adamw(config.learning_rate, b1, b2, weight_decay=config.weight_decay)


def initial(bundle: Bundle, config: TrainingSection) -> State:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return State(zero, bundle, bundle, optimizer(config).init(bundle), zero)


def update(state: State, loss: jax.Array, gradient: Bundle, config: TrainingSection) -> State:
    """One optimizer step, left out (and counted) where loss or gradient is not finite; EMA as in the authors' code."""
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    updates, moments = optimizer(config).update(gradient, state.optimizer, state.bundle)
    bundle = optax.apply_updates(state.bundle, updates)
    decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, state.ema, bundle)
    kept = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (bundle, ema, moments),
        (state.bundle, state.ema, state.optimizer),
    )
    return State(state.step + 1, *kept, state.skipped + 1 - finite.astype(jnp.int32))
