"""The noise schedule of a latent diffusion model, read from diffusers' `scheduler_config.json`.

Noisy latents at timestep t are  x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps  (Ho et al., 2020, equation 4).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.models.configs import read_config

_BETA_FAMILY = (
    *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
    *("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"),
)
_ONLY = {
    "_class_name": (None, *(f"{name}Scheduler" for name in _BETA_FAMILY)),
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": (None, "linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2),
    # diffusers' DPMSolverMultistepScheduler reads the other values, which are other schedulers', as the first
    "algorithm_type": ("dpmsolver++", "deis"),
    "solver_type": ("midpoint", "bh1", "bh2", "logrho"),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "lambda_min_clipped": (None, -float("inf")),
    "variance_type": (None, "fixed_small", "fixed_large", "fixed_small_log", "fixed_large_log"),
    "use_karras_sigmas": (None, False),
    "use_exponential_sigmas": (None, False),
    "use_beta_sigmas": (None, False),
    "use_lu_lambdas": (None, False),
    "use_flow_sigmas": (None, False),
    "use_dynamic_shifting": (False,),
}


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The fields of a `scheduler_config.json` that change the computation; the defaults are diffusers'.

    Whatever sampler the file names, `fairjax.diffusion.solvers` solves with the one that is asked for, taking
    its own default for a field that the file leaves out, as diffusers' `from_config` does. One default
    differs: without `clip_sample`, diffusers' DDIM clips the predicted latents to [-1, 1], which no latent
    model wants.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None  # None: "linspace" for DPM-Solver++, "leading" for DDIM
    steps_offset: int = 0
    set_alpha_to_one: bool = True  # DDIM: the last step ends at abar = 1, not at abar_0
    clip_sample: bool = False
    final_sigmas_type: str = "zero"  # DPM-Solver++: the last step ends at sigma = 0, or at that of timestep 0
    solver_order: int = 2
    lower_order_final: bool = True
    euler_at_final: bool = False

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> NoiseSchedule:
        """Reads a `scheduler_config.json`; raises ValueError naming a field whose value is not supported."""
        return read_config(cls, fields, _ONLY)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, supported = getattr(self, field.name), _ONLY.get(field.name)
            if supported and value not in supported:
                raise ValueError(f"NoiseSchedule: {field.name} = {value!r} must be one of {supported}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"NoiseSchedule: beta_start = {self.beta_start} and beta_end = {self.beta_end} must rise from 0 to 1"
            )

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """abar_t for every training timestep, [num_train_timesteps], float64, falling from almost 1."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
        return np.cumprod(1 - betas)

    def add_noise(self, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """Noisy latents x_t [b, h, w, c], from clean `latents` and standard normal `noise` of that shape.

        Args:
            timesteps: [b], integers in [0, num_train_timesteps).
        """
        signal, deviation = np.sqrt(self.alphas_cumprod), np.sqrt(1 - self.alphas_cumprod)

        def per_image(values: np.ndarray) -> jax.Array:
            return jnp.asarray(values, latents.dtype)[timesteps][:, None, None, None]

        return per_image(signal) * latents + per_image(deviation) * noise
