"""Noise schedule and solver tables against diffusers in float64, and the golden numbers of the design."""

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.diffusion.solvers import (
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


def run_diffusers(fields, solver, num_steps, noise, monkeypatch):
    with monkeypatch.context() as patch:  # diffusers asks for float32 by name: give it float64
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(np, "float32", np.float64)
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
def test_every_step_equals_diffusers(solver, variant, num_steps, monkeypatch):
    fields = {**SD15, **variant}
    noise = np.random.default_rng(0).normal(size=(16,))
    timesteps, xs = run(NoiseSchedule.from_dict(fields), solver, num_steps, noise)
    expected_timesteps, expected = run_diffusers(fields, solver, num_steps, noise, monkeypatch)
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


def test_coefficients_and_adjusted_weights_equal_the_golden_numbers():
    schedule = NoiseSchedule.from_dict(SD15)
    _, chain = chain_coefficients(schedule, "dpm-solver++", 25)
    adjusted = gradient_weights(schedule, "dpm-solver++", 25, "adjusted")
    np.testing.assert_allclose(chain, np.array(GOLDEN_C.split(), float), atol=5.1e-4)
    np.testing.assert_allclose(adjusted, np.array(GOLDEN_W.split(), float), atol=5.1e-4)


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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_adjustment_is_the_influence_of_each_output_on_the_full_ancestral_chain(prediction_type):
    schedule = NoiseSchedule.from_dict({**SD15, "prediction_type": prediction_type})
    scheduler = diffusers.DDPMScheduler.from_config({**SD15, "steps_offset": 0, "prediction_type": prediction_type})
    scheduler.alphas_cumprod = torch.tensor(schedule.alphas_cumprod)
    outputs = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    scheduler.set_timesteps(1000)
    x = torch.ones((1, 1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for timestep in range(999, -1, -1):  # the noise that each step adds leaves the derivative alone
        x = scheduler.step(outputs[timestep].reshape(1, 1), timestep, x, generator=generator).prev_sample
    x.backward()
    np.testing.assert_allclose(ancestral_influence(schedule), outputs.grad.abs().numpy(), rtol=1e-4)


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


def test_wrong_requests_are_refused_by_name():
    schedule = NoiseSchedule.from_dict(SD15)
    with pytest.raises(ValueError, match="euler.*ddim"):
        table(schedule, "euler", 5)
    with pytest.raises(ValueError, match="max_steps = 0"):
        table(schedule, "ddim", 0)
    with pytest.raises(ValueError, match="clip_sample"):
        table(NoiseSchedule.from_dict({**SD15, "clip_sample": True}), "ddim", 5)
    with pytest.raises(ValueError, match="mode = 'exact'"):
        gradient_weights(schedule, "ddim", 5, "exact")
