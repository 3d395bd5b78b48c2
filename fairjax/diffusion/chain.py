"""The sampling chain, and its gradients: adjusted direct finetuning (Shen et al., 2024, section 4.2).

The forward pass is a loop without autodiff that keeps only the latents x_i. Its gradient is chosen apart:

- "adjusted", "uniform" and "unscaled" cut the path through the network's image input, which leaves a sum over steps

      dL/dtheta = sum_i w_i (d o_i / d theta)^T dL/dx_S

  of independent terms (w: `solvers.gradient_weights`), computed for many (image, step) pairs at a time;
- "exact" is the true gradient, a reverse sweep through the chain; "truncated:K" is that of its last K steps.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fairjax.diffusion.guidance import Denoise
from fairjax.diffusion.solvers import WEIGHTINGS, SolverTable, Steps, advance, data_prediction, pull_back
from fairjax.models.functional import in_chunks


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
    """Denoises `noise` [b, h, w, c] into latents of that shape, in `num_steps` steps of the table's solver.

    Differentiable in `params` and `context`, in reverse mode and once. Leaves that the caller does not
    differentiate cost no gradient. The cotangent of `noise` is zero.

    Under `shard_map`, images are spread over the axis. The cotangent of parameters that vary over the axis
    (cast with `lax.pcast`) is this device's own share, for the caller to reduce; so it is of all parameters
    under `check_vma=False`. That of replicated ones under `check_vma=True` comes out already summed, at the
    price of a reduction in every iteration of the backward loop.

    Args:
        denoise: the network with its guidance. What is differentiated must come in through its arguments.
        context: pytree of arrays [b, ...], handed to `denoise`.
        num_steps: may be traced: one compilation serves every number of steps up to the table's.
        gradient: "adjusted", "uniform", "unscaled", "exact" or "truncated:K".
        grad_steps: estimate the sum over steps, without bias, from this many steps of each image.
        microbatch: how many images to denoise, and terms of the sum, (image, step) pairs, to differentiate at a
            time: what bounds the memory. b unless told.
        image_keys: [b] typed PRNG keys that choose each image's steps; needed where `grad_steps` is given.
    """
    max_steps = table.steps.timestep.shape[-1]
    if not isinstance(num_steps, jax.core.Tracer) and not 1 <= num_steps <= max_steps:
        raise ValueError(f"num_steps = {num_steps} must be between 1 and the table's {max_steps}")
    if grad_steps is not None and image_keys is None:
        raise ValueError(f"grad_steps = {grad_steps} needs image_keys, which choose the steps of each image")
    plan = _Plan(denoise, gradient, grad_steps, microbatch)
    row = jax.tree.map(lambda rows: jnp.asarray(rows)[num_steps - 1], table)
    offsets = None if grad_steps is None else jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(image_keys)
    run = _Run(row.steps, row.weights.get(gradient), jnp.asarray(num_steps), offsets)
    return _chain(plan, params, jax.tree.map(jnp.asarray, context), jnp.asarray(noise), run)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is fixed when the chain is compiled."""

    denoise: Denoise
    gradient: str
    grad_steps: int | None
    microbatch: int | None

    def __post_init__(self) -> None:
        kind, _, count = self.gradient.partition(":")
        truncated = kind == "truncated" and count.isdigit() and int(count) > 0
        if self.gradient not in (*WEIGHTINGS, "exact") and not truncated:
            known = ", ".join(map(repr, (*WEIGHTINGS, "exact")))
            raise ValueError(f"gradient = {self.gradient!r} must be {known} or 'truncated:K', K at least 1")
        for name, value in (("grad_steps", self.grad_steps), ("microbatch", self.microbatch)):
            if value is not None and (value < 1 or self.gradient not in WEIGHTINGS):
                raise ValueError(f"{name} = {value} must be at least 1, with gradient {' or '.join(WEIGHTINGS)}")

    @property
    def sweep(self) -> int | None:
        """How many steps from the end the reverse sweep goes; None for all."""
        return int(self.gradient.partition(":")[2]) if ":" in self.gradient else None


class _Run(NamedTuple):
    """What may differ from one call to the next."""

    steps: Steps  # of this number of steps, [max_steps]
    weights: jax.Array | None  # w [max_steps]; None for the gradients that are no sum over steps
    num_steps: jax.Array  # S
    offsets: jax.Array | None  # [b] in [0, 1): each image's choice of steps


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chain(plan, params, context, noise, run):
    return _solve(plan, params, context, noise, run, latents=None)[0]


def _forward(plan, params, context, noise, run):
    trained = jax.tree.map(lambda leaf: leaf.value if leaf.perturbed else None, (params, context))
    frozen = jax.tree.map(lambda leaf: None if leaf.perturbed else leaf.value, (params, context))
    noise, run = jax.tree.map(lambda leaf: leaf.value, (noise, run))
    latents = jnp.zeros((run.steps.timestep.size, *noise.shape), noise.dtype)
    x, latents = _solve(plan, *_merge(trained, frozen), noise, run, latents)
    return x, (trained, frozen, latents, run)


def _backward(plan, residuals, g):
    pull_back_chain = _reverse_sweep if residuals[-1].weights is None else _sum_over_steps
    return *pull_back_chain(plan, *residuals, g), None, None


_chain.defvjp(_forward, _backward, symbolic_zeros=True)


def _solve(plan, params, context, noise, run, latents):
    """x_S, and `latents` [max_steps, b, h, w, c] filled with x_i in row i (or None, if it is None)."""
    carry = (noise, jnp.zeros_like(noise), latents)

    def body(i, carry):
        x, previous, latents = carry
        step = _at(run.steps, i, x.dtype)
        arguments = (x, jnp.full(x.shape[:1], step.timestep), context)
        output = in_chunks(partial(plan.denoise, params), plan.microbatch, *arguments)
        data = data_prediction(step, x, output.astype(x.dtype))
        latents = None if latents is None else lax.dynamic_update_index_in_dim(latents, x, i, 0)
        return advance(step, x, data, previous), data, latents

    x, _, latents = lax.fori_loop(0, run.num_steps, body, _vary_alike(carry, like=(params, context, noise)))
    return x, latents


def _sum_over_steps(plan, trained, frozen, latents, run, g):
    """sum over (image, step) pairs of w_i (d o_i / d trained)^T g, a microbatch of pairs at a time."""
    images = g.shape[0]
    size = plan.microbatch or images
    steps_per_image = plan.grad_steps or run.num_steps

    def body(chunk, total):
        pair = chunk * size + jnp.arange(size)
        image, k = pair % images, pair // images
        step, weight = _choose_step(run, plan.grad_steps, image, k)
        weight = jnp.where(k < steps_per_image, weight, 0)  # the last microbatch may be part empty

        def network(trained):
            params, context = _merge(trained, frozen)
            context = jax.tree.map(lambda leaf: leaf[image], context)
            return plan.denoise(params, latents[step, image], run.steps.timestep[step], context)

        return _add(total, _pull_back_network(network, trained, weight[:, None, None, None] * g[image]))

    chunks = -(-steps_per_image * images // size)
    return _like(trained, lax.fori_loop(0, chunks, body, _zeros(trained)))


def _choose_step(run, grad_steps, image, k):
    """Step and weight of each image's k-th term: all S steps in turn, or an unbiased choice of `grad_steps`.

    The choice is systematic sampling: steps floor((u + k) S / K), k < K, of weight w S / K, with one u in
    [0, 1) for each image. Every step is as likely as any other, and an image's steps spread over the chain.
    """
    if grad_steps is None:
        step = jnp.minimum(k, run.num_steps - 1)
        return step, run.weights[step]
    stride = run.num_steps / grad_steps
    step = jnp.floor((run.offsets[image] + k) * stride).astype(jnp.int32)
    step = jnp.minimum(step, run.num_steps - 1)  # rounding may reach S
    return step, run.weights[step] * stride


def _reverse_sweep(plan, trained, frozen, latents, run, g):
    """The gradient through the chain's last steps, the path through the network's image input included."""
    count = run.num_steps if plan.sweep is None else jnp.minimum(plan.sweep, run.num_steps)
    g_x, g_data = _vary_alike((g, jnp.zeros_like(g)), like=(trained, frozen, g))

    def body(back, carry):
        g_x, g_data, total = carry
        i = run.num_steps - 1 - back
        step = _at(run.steps, i, g.dtype)
        g_output, g_x, g_data = pull_back(step, g_x, g_data)

        def network(arguments):
            (params, context), x = _merge(arguments[0], frozen), arguments[1]
            return plan.denoise(params, x, jnp.full(x.shape[:1], step.timestep), context)

        g_trained, g_x_network = _pull_back_network(network, (trained, latents[i]), g_output)
        return g_x + g_x_network, g_data, _add(total, g_trained)

    return _like(trained, lax.fori_loop(0, count, body, (g_x, g_data, _zeros(trained)))[2])


def _pull_back_network(network, arguments, g):
    output, pull = jax.vjp(network, arguments)
    return pull(g.astype(output.dtype))[0]


def _at(steps: Steps, i, dtype) -> Steps:
    """Row i, its coefficients in the type of the latents."""
    row = jax.tree.map(lambda rows: rows[i], steps)
    return Steps(row.timestep, *(coefficient.astype(dtype) for coefficient in row[1:]))


def _merge(trained, frozen):
    """Two trees with None where the other has a leaf, as one."""
    return jax.tree.map(lambda t, f: f if t is None else t, trained, frozen, is_leaf=lambda leaf: leaf is None)


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
