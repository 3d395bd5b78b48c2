"""Noise schedule and solver tables against diffusers in float64, and the golden numbers of the design."""

import contextlib
from typing import get_args

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fairjax import generate
from fairjax.config import Solver
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.diffusion.solvers import (
    SOLVERS,
    Steps,
    advance,
    ancestral_influence,
    chain_coefficients,
    data_prediction,
    gradient_weights,
    solver_steps,
    table,
)

SD15 = {  # Stable Diffusion 1.5's scheduler_config.json
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SCHEDULERS = {"dpm-solver++": diffusers.DPMSolverMultistepScheduler, "ddim": diffusers.DDIMScheduler}


def test_every_solver_is_compared_with_diffusers_and_can_be_asked_for():
    (solver,) = (action for action in generate._parser()._actions if action.dest == "solver")
    assert set(SOLVERS) == set(SCHEDULERS) == set(get_args(Solver)) == set(solver.choices)


def network(x, timestep):
    return np.tanh(1.3 * x + timestep / 700)


def run(schedule, solver, num_steps, noise):
    """Timesteps, and the latents after every step."""
    steps, x, previous, xs = solver_steps(schedule, solver, num_steps), noise, np.zeros_like(noise), []
    for row in zip(*steps, strict=True):
        step = Steps(*row)
        data = data_prediction(step, x, network(x, step.timestep))
        x, previous = advance(step, x, data, previous), data
        xs.append(x)
    return steps.timestep, np.stack(xs)


@pytest.fixture
def in_float64(monkeypatch):
    """A context in which diffusers, which asks for float32 by name, is given float64."""

    @contextlib.contextmanager
    def patched():
        with monkeypatch.context() as patch:
            patch.setattr(torch, "float32", torch.float64)
            patch.setattr(np, "float32", np.float64)
            yield

    return patched


def run_diffusers(fields, solver, num_steps, noise, in_float64):
    with in_float64():
        scheduler = SCHEDULERS[solver].from_config(fields)
        scheduler.set_timesteps(num_steps)
        x, xs = torch.tensor(noise), []
        for timestep in scheduler.timesteps:
            x = scheduler.step(torch.tensor(network(x.numpy(), timestep.item())), timestep, x).prev_sample
            xs.append(x.numpy())
    return scheduler.timesteps.numpy(), np.stack(xs)


VARIANTS = [
    {},
    {"prediction_type": "v_prediction"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    {"beta_schedule": "linear", "beta_end": 0.02, "set_alpha_to_one": True, "steps_offset": 0},
]
DPM_VARIANTS = [
    {"final_sigmas_type": "sigma_min"},
    {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    {"final_sigmas_type": "sigma_min", "euler_at_final": True, "prediction_type": "v_prediction"},
    {"solver_order": 1},
]


@pytest.mark.parametrize("num_steps", [1, 2, 7, 14, 15, 25, 50])
@pytest.mark.parametrize(
    "solver, variant",
    [(solver, variant) for solver in SCHEDULERS for variant in VARIANTS]
    + [("dpm-solver++", variant) for variant in DPM_VARIANTS],
)
def test_every_step_equals_diffusers(solver, variant, num_steps, in_float64):
    fields = {**SD15, **variant}
    noise = np.random.default_rng(0).normal(size=(16,))
    timesteps, xs = run(NoiseSchedule.from_dict(fields), solver, num_steps, noise)
    expected_timesteps, expected = run_diffusers(fields, solver, num_steps, noise, in_float64)
    np.testing.assert_array_equal(timesteps, expected_timesteps)
    np.testing.assert_allclose(xs, expected, rtol=1e-9, atol=1e-11)


def test_adding_noise_equals_diffusers():
    rng = np.random.default_rng(0)
    latents, noise = rng.normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    timesteps = np.array([0, 500, 999])
    ours = NoiseSchedule.from_dict(SD15).add_noise(jnp.asarray(latents), jnp.asarray(noise), jnp.asarray(timesteps))
    scheduler = diffusers.DDIMScheduler.from_config(SD15)
    expected = scheduler.add_noise(*map(torch.tensor, (latents, noise, timesteps)))
    np.testing.assert_allclose(ours, expected.numpy(), atol=2e-6)  # diffusers multiplies its alphas in float32


# DPM-Solver++ with 25 steps on SD 1.5's schedule, measured once with diffusers and autodiff, in float64.
GOLDEN_C = """
-1.877 -2.597 -1.963 -1.503 -1.165 -0.913 -0.725 -0.582 -0.472 -0.388 -0.323 -0.276 -0.217
-0.201 -0.172 -0.151 -0.134 -0.120 -0.108 -0.098 -0.089 -0.080 -0.087 -0.175 -0.199"""
GOLDEN_W = """
-0.170 -0.315 -0.315 -0.315 -0.315 -0.315 -0.315 -0.315 -0.316 -0.316 -0.316 -0.322 -0.298
-0.320 -0.316 -0.316 -0.315 -0.315 -0.313 -0.308 -0.299 -0.281 -0.311 -0.602 -0.579"""
GOLDEN_UNIFORM = -0.320  # the geometric mean of either


def test_coefficients_and_weights_equal_the_golden_numbers():
    schedule = NoiseSchedule.from_dict(SD15)
    _, chain = chain_coefficients(schedule, "dpm-solver++", 25)
    adjusted = gradient_weights(schedule, "dpm-solver++", 25, "adjusted")
    np.testing.assert_allclose(chain, np.array(GOLDEN_C.split(), float), atol=5.1e-4)
    np.testing.assert_allclose(adjusted, np.array(GOLDEN_W.split(), float), atol=5.1e-4)
    uniform = gradient_weights(schedule, "dpm-solver++", 25, "uniform")
    np.testing.assert_allclose(uniform, np.full(25, GOLDEN_UNIFORM), atol=5.1e-4)
    np.testing.assert_array_equal(gradient_weights(schedule, "dpm-solver++", 25, "unscaled"), chain)


def test_a_chain_that_ends_at_sigma_min_has_the_last_weights_of_diffusers_019():
    """The version that the authors' scripts pin; its scheduler, with their weights, was run once, at 21 steps."""
    schedule = NoiseSchedule.from_dict(SD15 | {"final_sigmas_type": "sigma_min"})
    adjusted = gradient_weights(schedule, "dpm-solver++", 21, "adjusted")
    np.testing.assert_allclose(adjusted[-4:], [-0.217, 0.099, 0.356, -2.056], atol=5.1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("solver", list(SCHEDULERS))
def test_the_chain_is_the_linear_map_that_its_coefficients_say(solver, prediction_type):
    schedule = NoiseSchedule.from_dict({**SD15, "prediction_type": prediction_type})
    steps, rng = solver_steps(schedule, solver, 9), np.random.default_rng(0)
    noise, outputs = rng.normal(size=5), rng.normal(size=(9, 5))
    x, previous = noise, np.zeros(5)
    for output, row in zip(outputs, zip(*steps, strict=True), strict=True):
        data = data_prediction(Steps(*row), x, output)
        x, previous = advance(Steps(*row), x, data, previous), data
    start, chain = chain_coefficients(schedule, solver, 9)
    np.testing.assert_allclose(start * noise + chain @ outputs, x, rtol=1e-12, atol=1e-12)


def influence(scheduler, timesteps):
    """d x_0 / d o_t of a diffusers scheduler's chain at each step, by its own autodiff; all noise comes from one seed.

    The outputs do not depend on x: what is cut is the path through the network's image input.
    """
    outputs = torch.zeros(len(timesteps), dtype=torch.float64, requires_grad=True)
    x, kinds = torch.ones((1, 1), dtype=torch.float64), {}
    if isinstance(scheduler, diffusers.DDPMScheduler):  # the noise that each step adds leaves the derivative alone
        kinds["generator"] = torch.Generator().manual_seed(0)
    for output, timestep in zip(outputs, timesteps, strict=True):
        x = scheduler.step(output.reshape(1, 1), timestep, x, **kinds).prev_sample
    x.backward()
    return outputs.grad.numpy()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_influences_and_adjusted_weights_are_what_autodiff_says_of_diffusers(prediction_type, in_float64):
    """In float64. A is the influence of an output on the full ancestral chain, C that on the solver's."""
    fields = {**SD15, "prediction_type": prediction_type}
    schedule = NoiseSchedule.from_dict(fields)
    with in_float64():
        ancestral = diffusers.DDPMScheduler.from_config({**fields, "steps_offset": 0})
        ancestral.set_timesteps(1000)
        full = np.abs(influence(ancestral, ancestral.timesteps.tolist()))[::-1]
    np.testing.assert_allclose(ancestral_influence(schedule), full, rtol=1e-6)
    for solver, num_steps in (("dpm-solver++", 25), ("dpm-solver++", 6), ("ddim", 20)):
        with in_float64():
            scheduler = SCHEDULERS[solver].from_config(fields)
            scheduler.set_timesteps(num_steps)
            expected = influence(scheduler, scheduler.timesteps)
        np.testing.assert_allclose(chain_coefficients(schedule, solver, num_steps)[1], expected, rtol=1e-6)
        scale = 1 / full[scheduler.timesteps.numpy()]
        adjusted = gradient_weights(schedule, solver, num_steps, "adjusted")
        np.testing.assert_allclose(adjusted, expected * scale / np.exp(np.log(scale).mean()), rtol=1e-6)


@pytest.mark.parametrize("solver", list(SCHEDULERS))
def test_uniform_weights_are_equal_and_have_the_geometric_mean_of_the_adjusted(solver):
    schedule = NoiseSchedule.from_dict(SD15)
    adjusted, uniform = (gradient_weights(schedule, solver, 20, mode) for mode in ("adjusted", "uniform"))
    assert len(set(uniform)) == 1 and uniform[0] < 0
    np.testing.assert_allclose(np.log(-uniform).mean(), np.log(np.abs(adjusted)).mean())


def test_the_table_holds_every_number_of_steps():
    schedule = NoiseSchedule.from_dict(SD15)
    stacked = table(schedule, "dpm-solver++", 6)
    for num_steps in (1, 4, 6):
        expected = solver_steps(schedule, "dpm-solver++", num_steps)
        for rows, row in zip(stacked.steps, expected, strict=True):
            np.testing.assert_array_equal(rows[num_steps - 1, :num_steps], row.astype(rows.dtype))
            assert not rows[num_steps - 1, num_steps:].any()
        for mode, rows in stacked.weights.items():
            weights = gradient_weights(schedule, "dpm-solver++", num_steps, mode)
            np.testing.assert_array_equal(rows[num_steps - 1, :num_steps], weights.astype(np.float32))


@pytest.mark.parametrize(
    "field",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "sample"},
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"use_karras_sigmas": True},
        {"rescale_betas_zero_snr": True},
        {"thresholding": True},
        {"trained_betas": [0.1, 0.2]},
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        NoiseSchedule.from_dict({**SD15, **field})


@pytest.mark.parametrize(
    ("solver", "num_steps", "fields"),
    [
        ("dpm-solver++", 1000, {"steps_offset": 0}),
        ("ddim", 1000, {"steps_offset": 1}),
        ("dpm-solver++", 10, {"timestep_spacing": "leading", "steps_offset": 5000}),
    ],
)
def test_steps_that_fall_together_or_out_of_the_schedule_are_refused(solver, num_steps, fields):
    """They would divide by zero, and draw nothing."""
    schedule = NoiseSchedule.from_dict(SD15 | fields)
    with pytest.raises(ValueError, match=f"^{num_steps} solver steps cannot be told apart among the 1000 timesteps"):
        solver_steps(schedule, solver, num_steps)


def test_wrong_requests_are_refused_by_name():
    schedule = NoiseSchedule.from_dict(SD15)
    with pytest.raises(ValueError, match="no such.*ddim"):
        table(schedule, "no such", 5)
    with pytest.raises(ValueError, match="max_steps = 0"):
        table(schedule, "ddim", 0)
    with pytest.raises(ValueError, match="clip_sample"):
        table(NoiseSchedule.from_dict({**SD15, "clip_sample": True}), "ddim", 5)
    with pytest.raises(ValueError, match="mode = 'exact'"):
        gradient_weights(schedule, "ddim", 5, "exact")
