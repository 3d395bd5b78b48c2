"""The sampling chain, and its gradients: adjusted direct finetuning (Shen et al., 2024, section 4.2).

The forward pass is a loop without autodiff that keeps only the latents x_i. What the gradient is, is a choice apart:

- "adjusted" and "uniform" cut the path through the network's image input, which leaves a sum over steps

      dL/dtheta = sum_i w_i (d o_i / d theta)^T dL/dx_S

  of independent terms (w: `solvers.gradient_weights`), computed for many (image, step) pairs at a time;
- "exact" is the true gradient, a reverse sweep through the chain; "truncated:K" is that of its last K steps.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairjax.diffusion.guidance import Denoise
from fairjax.diffusion.solvers import WEIGHTINGS, SolverTable, Steps, advance, data_prediction, pull_back


def sample(
    denoise: Denoise,
    params: Any,
    context: Any,
    noise: jax.Array,
    table: SolverTable,
    num_steps: int | jax.Array,
    *,
    gradient: str = "adjusted",
    grad_steps: int | None = None,
    microbatch: int | None = None,
    image_keys: jax.Array | None = None,
) -> jax.Array:
    """Denoises `noise` [b, h, w, c] into latents of that shape, in `num_steps` steps of the solver in `table`.

    Differentiable in `params` and `context`, in reverse mode and once. Leaves that the caller does not differentiate
    cost no gradient: differentiate in the adapter, not in the whole network. The cotangent of `noise` is zero.

    Under `shard_map`, images are spread over the axis. The cotangent of parameters that vary over the axis (cast
    with `lax.pcast`) is this device's own share, to be reduced by the caller; that of replicated ones comes out
    summed, at the price of a reduction in every iteration of the backward loop.

    Args:
        denoise: the network with its guidance. What is to be differentiated must come through its arguments.
        context: pytree of arrays [b, ...], handed to `denoise`.
        num_steps: may be traced, so that one compilation serves every number of steps up to the table's.
        gradient: "adjusted", "uniform", "exact" or "truncated:K".
        grad_steps: with "adjusted" and "uniform", estimate the sum without bias from this many steps of each image.
        microbatch: with "adjusted" and "uniform", how many (image, step) pairs to differentiate at a time;
            b unless told. Bounds the memory of the backward pass.
        image_keys: [b] typed PRNG keys that choose the steps of each image where `grad_steps` is given.
    """
    max_steps = table.steps.timestep.shape[-1]
    if isinstance(num_steps, int) and not 1 <= num_steps <= max_steps:
        raise ValueError(f"num_steps = {num_steps} must be between 1 and the table's {max_steps}")
    if grad_steps is not None and image_keys is None:
        raise ValueError(f"grad_steps = {grad_steps} needs image_keys, which choose the steps of each image")
    plan = _Plan(denoise, gradient, grad_steps, microbatch or noise.shape[0])
    row = jax.tree.map(lambda rows: jnp.asarray(rows)[num_steps - 1], table)
    offsets = None if grad_steps is None else jax.vmap(jax.random.uniform)(image_keys)
    return _chain(plan, params, context, noise, row.steps, row.weights.get(gradient), num_steps, offsets)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is fixed when the chain is compiled."""

    denoise: Denoise
    gradient: str
    grad_steps: int | None
    microbatch: int

    def __post_init__(self) -> None:
        kind, _, count = self.gradient.partition(":")
        if self.gradient not in (*WEIGHTINGS, "exact") and not (
            kind == "truncated" and count.isdigit() and int(count)
        ):
            known = " or ".join(map(repr, (*WEIGHTINGS, "exact", "truncated:K")))
            raise ValueError(f"gradient = {self.gradient!r} is not known; it must be {known}, K at least 1")
        if self.grad_steps is not None and (self.grad_steps < 1 or self.gradient not in WEIGHTINGS):
            raise ValueError(
                f"grad_steps = {self.grad_steps} must be at least 1, and goes with {WEIGHTINGS} only"
            )

    @property
    def last(self) -> int | None:
        """How many steps from the end the reverse sweep goes; None for all."""
        return int(self.gradient.partition(":")[2]) if ":" in self.gradient else None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chain(plan, params, context, noise, steps, weights, num_steps, offsets):
    return _solve(plan.denoise, params, context, noise, steps, num_steps, latents=None)[0]


def _forward(plan, params, context, noise, steps, weights, num_steps, offsets):
    trained = jax.tree.map(lambda leaf: leaf.value if leaf.perturbed else None, (params, context))
    frozen = jax.tree.map(lambda leaf: None if leaf.perturbed else leaf.value, (params, context))
    noise, steps, weights, num_steps, offsets = jax.tree.map(
        lambda leaf: leaf.value, (noise, steps, weights, num_steps, offsets)
    )
    latents = jnp.zeros((steps.timestep.size, *noise.shape), noise.dtype)
    x, latents = _solve(plan.denoise, *_merge(trained, frozen), noise, steps, num_steps, latents)
    return x, (trained, frozen, latents, steps, weights, num_steps, offsets)


def _backward(plan, residuals, g):
    trained, frozen, latents, steps, weights, num_steps, offsets = residuals
    if weights is None:  # "exact" or "truncated:K"
        g_params, g_context = _reverse_sweep(plan, trained, frozen, latents, steps, num_steps, g)
    else:
        g_params, g_context = _sum_of_steps(
            plan, trained, frozen, latents, steps.timestep, weights, num_steps, offsets, g
        )
    return g_params, g_context, None, None, None, None, None


_chain.defvjp(_forward, _backward, symbolic_zeros=True)


def _solve(denoise, params, context, noise, steps, num_steps, latents):
    """Runs the chain. Returns x_S and `latents` [max_steps, b, h, w, c] with x_i in row i, or None if it is None."""
    noise, latents, data = _vary_alike((noise, latents, jnp.zeros_like(noise)), like=(params, context, noise))

    def body(i, carry):
        x, previous, latents = carry
        step = _at(steps, i, x.dtype)
        output = denoise(params, x, jnp.full(x.shape[:1], step.timestep), context).astype(x.dtype)
        data = data_prediction(step, x, output)
        latents = None if latents is None else lax.dynamic_update_index_in_dim(latents, x, i, 0)
        return advance(step, x, data, previous), data, latents

    x, _, latents = lax.fori_loop(0, num_steps, body, (noise, data, latents))
    return x, latents


def _sum_of_steps(plan, trained, frozen, latents, timesteps, weights, num_steps, offsets, g):
    """sum over (image, step) pairs of w_i (d o_i / d trained)^T g, a microbatch of pairs at a time."""
    images = g.shape[0]
    steps_per_image = num_steps if plan.grad_steps is None else plan.grad_steps

    def body(chunk, total):
        pair = chunk * plan.microbatch + jnp.arange(plan.microbatch)
        image, k = pair % images, pair // images
        step, weight = _choose_step(k, image, weights, num_steps, plan.grad_steps, offsets)
        weight = jnp.where(k < steps_per_image, weight, 0)  # the last microbatch may be part empty

        def network(trained):
            params, context = _merge(trained, frozen)
            return plan.denoise(
                params, latents[step, image], timesteps[step], jax.tree.map(lambda c: c[image], context)
            )

        return _add(total, _pull_back_network(network, trained, weight[:, None, None, None] * g[image]))

    chunks = -(-steps_per_image * images // plan.microbatch)
    return _like(trained, lax.fori_loop(0, chunks, body, _zeros(trained)))


def _choose_step(k, image, weights, num_steps, grad_steps, offsets):
    """Step and weight of the k-th pair of each image: all steps in turn, or an unbiased choice of `grad_steps`.

    The choice is systematic sampling: steps floor((u + k) S / K), k < K, of weight w S / K, with one u in [0, 1) for
    each image. Every step is as likely as any other, and an image's steps lie evenly along the chain.
    """
    if grad_steps is None:
        step = jnp.minimum(k, num_steps - 1)
        return step, weights[step]
    stride = num_steps / grad_steps
    step = jnp.floor((offsets[image] + k) * stride).astype(jnp.int32)
    step = jnp.minimum(step, num_steps - 1)  # rounding may reach S
    return step, weights[step] * stride


def _reverse_sweep(plan, trained, frozen, latents, steps, num_steps, g):
    """The gradient through the last `plan.last` steps (all, if None), through the network's image input too."""
    g, g_data = _vary_alike((g, jnp.zeros_like(g)), like=(trained, frozen, g))

    def body(back, carry):
        g_x, g_data, total = carry
        i = num_steps - 1 - back
        step = _at(steps, i, g.dtype)
        g_output, g_x, g_data = pull_back(step, g_x, g_data)

        def network(arguments):
            (params, context), x = _merge(arguments[0], frozen), arguments[1]
            return plan.denoise(params, x, jnp.full(x.shape[:1], step.timestep), context)

        g_trained, through_network = _pull_back_network(network, (trained, latents[i]), g_output)
        return g_x + through_network, g_data, _add(total, g_trained)

    count = num_steps if plan.last is None else jnp.minimum(plan.last, num_steps)
    return _like(trained, lax.fori_loop(0, count, body, (g, g_data, _zeros(trained)))[2])


def _pull_back_network(network, arguments, g):
    output, pull = jax.vjp(network, arguments)
    return pull(g.astype(output.dtype))[0]


def _at(steps: Steps, i, dtype) -> Steps:
    """Row i, its coefficients in the type of the latents."""
    row = jax.tree.map(lambda rows: rows[i], steps)
    return Steps(row.timestep, *(coefficient.astype(dtype) for coefficient in row[1:]))


def _merge(trained, frozen):
    """Two trees with None where the other has a leaf, as one."""
    return jax.tree.map(
        lambda t, f: f if t is None else t, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def _zeros(tree):
    """Accumulators: zeros of the leaves' shapes, in float32 at least."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def _add(total, terms):
    return jax.tree.map(lambda t, term: t + term.astype(t.dtype), total, terms)


def _like(tree, sums):
    return jax.tree.map(lambda leaf, total: total.astype(leaf.dtype), tree, sums)


def _vary_alike(arrays, like):
    """Casts `arrays` to vary over every `shard_map` axis that anything in `like` varies over.

    A loop's carry must: what the network returns varies over all of them.
    """
    axes = frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(like)))

    def cast(array):
        missing = tuple(axes - jax.typeof(array).manual_axis_type.varying)
        return lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(cast, arrays)
