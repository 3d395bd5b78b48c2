"""Solvers of the probability-flow equation as data: a tableau of coefficients, run by one shared loop.

Every solver here is a multistep method in the *data prediction* m, the clean latents that the network's
output o implies. With scalars that depend on the schedule and the number of steps S alone, step i is

    m_i     = data_from_x[i] x_i + data_from_output[i] o_i
    x_{i+1} = next_from_x[i] x_i + next_from_data[i] m_i + next_from_previous[i] m_{i-1}

so that a new solver is a new table. The scalars are computed on the host in float64.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

from fairjax.diffusion.schedule import NoiseSchedule

Array = TypeVar("Array")
WEIGHTINGS = ("adjusted", "uniform", "unscaled")


class Steps(NamedTuple):
    """The tableau of one number of steps, a row a step ([S], float64), or any slice of such rows."""

    timestep: np.ndarray  # training timestep of x_i, an integer
    data_from_x: np.ndarray
    data_from_output: np.ndarray
    next_from_x: np.ndarray
    next_from_data: np.ndarray
    next_from_previous: np.ndarray


class SolverTable(NamedTuple):
    """The tableaux of S = 1 .. max_steps: arrays [max_steps, max_steps], row S - 1 zero from column S on."""

    steps: Steps  # timesteps int32, coefficients float32
    weights: dict[str, np.ndarray]  # by weighting: w_i of `gradient_weights`, float32


def table(schedule: NoiseSchedule, solver: str, max_steps: int) -> SolverTable:
    """Stacks the tableaux of every number of steps up to `max_steps`, so that S may be a traced value."""
    if not 1 <= max_steps <= schedule.num_train_timesteps:
        raise ValueError(f"max_steps = {max_steps} must be between 1 and {schedule.num_train_timesteps}")

    def stack(rows: list[np.ndarray]) -> np.ndarray:
        dtype = np.int32 if rows[0].dtype.kind == "i" else np.float32
        return np.stack([np.pad(row, (0, max_steps - len(row))).astype(dtype) for row in rows])

    counts = range(1, max_steps + 1)
    steps = [solver_steps(schedule, solver, count) for count in counts]
    weights = {mode: [gradient_weights(schedule, solver, count, mode) for count in counts] for mode in WEIGHTINGS}
    return SolverTable(
        Steps(*(stack(list(rows)) for rows in zip(*steps, strict=True))),
        {mode: stack(rows) for mode, rows in weights.items()},
    )


def data_prediction(step: Steps, x: Array, output: Array) -> Array:
    """m_i, the clean latents that the network's output at x_i implies."""
    return step.data_from_x * x + step.data_from_output * output


def advance(step: Steps, x: Array, data: Array, previous_data: Array) -> Array:
    """x_{i+1}, from x_i, m_i and m_{i-1}."""
    return step.next_from_x * x + step.next_from_data * data + step.next_from_previous * previous_data


def pull_back(step: Steps, g_next: Array, g_data: Array) -> tuple[Array, Array, Array]:
    """A step transposed: cotangents of (o_i, x_i, m_{i-1}), from those of x_{i+1} and (by step i + 1) m_i.

    That of x_i leaves out the path through the network.
    """
    g_data = step.next_from_data * g_next + g_data
    g_x = step.next_from_x * g_next + step.data_from_x * g_data
    return step.data_from_output * g_data, g_x, step.next_from_previous * g_next


def solver_steps(schedule: NoiseSchedule, solver: str, num_steps: int) -> Steps:
    """The tableau of `solver` ("dpm-solver++" or "ddim") for `num_steps` steps."""
    if solver not in SOLVERS:
        raise ValueError(f"solver = {solver!r} is not known; it must be {' or '.join(map(repr, SOLVERS))}")
    return SOLVERS[solver](schedule, num_steps)


def chain_coefficients(schedule: NoiseSchedule, solver: str, num_steps: int) -> tuple[float, np.ndarray]:
    """P and C [num_steps] of  x_S = P x_T + sum_i C_i o_i : the chain is linear in its network outputs."""
    steps = solver_steps(schedule, solver, num_steps)
    coefficients, g_x, g_data = np.zeros(num_steps), 1.0, 0.0
    for i in reversed(range(num_steps)):
        coefficients[i], g_x, g_data = pull_back(Steps(*(rows[i] for rows in steps)), g_x, g_data)
    return float(g_x), coefficients


def gradient_weights(schedule: NoiseSchedule, solver: str, num_steps: int, mode: str) -> np.ndarray:
    """w [num_steps]: what multiplies dL/dx_S at each step's network output, in adjusted direct finetuning.

    "adjusted" is what the authors' code does (Shen et al., 2024, section 4.2): w_i = C_i / A_i, times the
    geometric mean of A. A_i is `ancestral_influence` at the step's timestep, so where the solver's own
    influence C_i is proportional to it, every step weighs the same. (Under diffusers 0.19, which their scripts pin, a
    chain ends at sigma_min by a second-order step: there two of the last weights have the other sign, and the last is
    the largest by far. So it is here for a scheduler with `final_sigmas_type: sigma_min`.) "uniform" is what the
    paper's text says: equal weights, of the same geometric mean and negative, as C is but for schedules that end at
    sigma_min; only steps that change nothing (C_i = 0) weigh nothing. "unscaled"
    is C itself: the path through the network's image input is cut, and nothing else is done (s_i = 1 in the paper).
    """
    _, chain = chain_coefficients(schedule, solver, num_steps)
    if mode == "adjusted":
        influence = ancestral_influence(schedule)[solver_steps(schedule, solver, num_steps).timestep]
        return chain / influence * _geometric_mean(influence)
    if mode == "uniform":
        # Negative, as C is: more of the predicted noise (or velocity) means less in the clean latents.
        return np.where(chain != 0, -_geometric_mean(np.abs(chain[chain != 0])), 0.0)
    if mode == "unscaled":
        return chain
    raise ValueError(f"mode = {mode!r} is not known; it must be {' or '.join(map(repr, WEIGHTINGS))}")


def ancestral_influence(schedule: NoiseSchedule) -> np.ndarray:
    """A_t [num_train_timesteps]: |d x_0 / d o_t| of the full ancestral chain, the network's input cut off.

    The mean of that chain (Ho et al., 2020, equation 11) is x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps) /
    sqrt(alpha_t). For a network that predicts eps, its steps multiply x by 1 / sqrt(alpha), so

        A_t = beta_t / (sqrt(1 - abar_t) sqrt(abar_t)),

    the factor in the authors' code. For one that predicts the velocity v (Salimans and Ho, 2022), put
    eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t into the mean: it becomes

        x_{t-1} = sqrt(alpha_t) x_t - beta_t sqrt(abar_{t-1} / (1 - abar_t)) v,

    whose steps multiply x by sqrt(alpha), so

        A_t = beta_t abar_{t-1} / sqrt(1 - abar_t).
    """
    abar = schedule.alphas_cumprod
    before = np.concatenate([[1.0], abar[:-1]])
    beta = 1 - abar / before
    if schedule.prediction_type == "epsilon":
        return beta / np.sqrt((1 - abar) * abar)
    return beta * before / np.sqrt(1 - abar)


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _dpm_solver(schedule: NoiseSchedule, num_steps: int) -> Steps:
    """DPM-Solver++(2M), midpoint (Lu et al., 2022, algorithm 2): diffusers' `DPMSolverMultistepScheduler`."""
    spacing, last = schedule.timestep_spacing or "linspace", schedule.num_train_timesteps
    if spacing == "linspace":
        timesteps = np.linspace(0, last - 1, num_steps + 1).round()[:0:-1]
    elif spacing == "leading":
        timesteps = np.arange(num_steps, 0, -1) * (last // (num_steps + 1)) + schedule.steps_offset
    else:
        timesteps = _trailing(last, num_steps)
    timesteps = _integers(timesteps, last)

    abar, ends_clean = schedule.alphas_cumprod[timesteps], schedule.final_sigmas_type == "zero"
    second_order = np.full(num_steps, schedule.solver_order == 2)
    second_order[0] = False  # no history yet
    if ends_clean or schedule.euler_at_final or (schedule.lower_order_final and num_steps < 15):
        second_order[-1] = False
    end = 1.0 if ends_clean else schedule.alphas_cumprod[0]
    return _tableau(schedule, timesteps, np.append(abar[1:], end), second_order)


def _ddim(schedule: NoiseSchedule, num_steps: int) -> Steps:
    """DDIM with eta = 0 (Song et al., 2021, equation 12): diffusers' `DDIMScheduler`."""
    if schedule.clip_sample:
        raise ValueError("NoiseSchedule: clip_sample = True is not supported by the solver 'ddim'")
    spacing, last = schedule.timestep_spacing or "leading", schedule.num_train_timesteps
    if spacing == "linspace":
        timesteps = np.linspace(0, last - 1, num_steps).round()[::-1]
    elif spacing == "leading":
        timesteps = np.arange(num_steps)[::-1] * (last // num_steps) + schedule.steps_offset
    else:
        timesteps = _trailing(last, num_steps)
    timesteps = _integers(timesteps, last)

    # diffusers' DDIM steps by a constant stride, even where that is not its next timestep ("linspace").
    after, abar = timesteps - last // num_steps, schedule.alphas_cumprod
    end = 1.0 if schedule.set_alpha_to_one else abar[0]
    return _tableau(schedule, timesteps, np.where(after >= 0, abar[after], end), np.zeros(num_steps, bool))


SOLVERS = {"dpm-solver++": _dpm_solver, "ddim": _ddim}


def _integers(timesteps: np.ndarray, last: int) -> np.ndarray:
    """Raises ValueError, one line, where they are not falling, each within [0, last)."""
    integers = timesteps.astype(np.int64)
    if integers[0] >= last or integers[-1] < 0 or np.any(np.diff(integers) >= 0):
        raise ValueError(
            f"{len(timesteps)} solver steps cannot be told apart among the {last} timesteps of the model, as its "
            "schedule spaces them: take fewer"
        )
    return integers


def _trailing(last: int, num_steps: int) -> np.ndarray:
    return np.arange(last, 0, -last / num_steps).round()[:num_steps] - 1


def _tableau(schedule: NoiseSchedule, timesteps: np.ndarray, abar_next: np.ndarray, second_order: np.ndarray) -> Steps:
    """Steps from abar at `timesteps` to `abar_next`, exponential integrators of the data prediction.

    First-order DPM-Solver++ is DDIM: x' = (sigma' / sigma) x + (alpha' - sigma' alpha / sigma) m. The second
    order replaces m by m + (h / 2 h_0) (m - m_previous), where h and h_0 are this step and the one before in
    half the logarithm of the signal-to-noise ratio.
    """
    abar = schedule.alphas_cumprod[timesteps]
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    alpha_next, sigma_next = np.sqrt(abar_next), np.sqrt(1 - abar_next)
    if schedule.prediction_type == "epsilon":
        data_from_x, data_from_output = 1 / alpha, -sigma / alpha
    else:
        data_from_x, data_from_output = alpha, -sigma

    extrapolation = np.zeros(len(timesteps))
    i = np.flatnonzero(second_order)
    extrapolation[i] = 0.5 * (_half_log_snr(abar_next[i]) - _half_log_snr(abar[i]))
    extrapolation[i] /= _half_log_snr(abar[i]) - _half_log_snr(abar[i - 1])

    from_x = sigma_next / sigma
    from_data = alpha_next - from_x * alpha
    return Steps(
        timesteps,
        data_from_x,
        data_from_output,
        next_from_x=from_x,
        next_from_data=from_data * (1 + extrapolation),
        next_from_previous=-from_data * extrapolation,
    )


def _half_log_snr(abar: np.ndarray) -> np.ndarray:
    return 0.5 * np.log(abar / (1 - abar))
