"""kohya's names of LoRA weights, which AUTOMATIC1111 and ComfyUI read.

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight   [rank, in]
    ....lora_up.weight [out, rank] and ....alpha, whose quotient with the rank scales the change

Dots of a module's path are underscores in them, so that a network's own modules must say which is which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from fairjax.adapters import lora
from fairjax.models.functional import Params, misfits

_PREFIXES = {"text_encoder": "lora_te_", "unet": "lora_unet_"}
_TEXT_MODEL = "text_model."
_KOHYAS = r"lora_(te\d?|unet)_"
"""How its names begin; those of models with several text encoders number them."""

_FACTORS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "alpha": "alpha"}


def to_kohya(tensors: Mapping[str, np.ndarray], scales: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Tensors under diffusers' names (`unet.<module>.lora_A.weight`) under kohya's, with an alpha for each module.

    Args:
        scales: by component, alpha / rank.
    """
    theirs = {ours: name for name, ours in _FACTORS.items()}
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        component, _, rest = name.partition(".")
        module, factor = next((rest.removesuffix(f".{end}"), theirs[end]) for end in theirs if rest.endswith(f".{end}"))
        flat = _PREFIXES[component] + module.replace(".", "_")
        renamed[f"{flat}.{factor}"] = tensor
        if factor == "lora_down.weight":
            renamed[f"{flat}.alpha"] = np.float32(scales[component] * tensor.shape[0])
    return {name: np.asarray(tensor) for name, tensor in renamed.items()}


def from_kohya(tensors: Mapping[str, np.ndarray], networks: Mapping[str, Params]) -> dict[str, np.ndarray]:
    """Tensors under kohya's names under diffusers'; others as they are.

    Args:
        networks: by component, the parameter tree that the file may adapt; abstract will do.

    Raises:
        ValueError: one line, where kohya's names are of modules that no network has.
    """
    modules = {}
    for component, params in networks.items():
        for module in lora.kernels(params):
            published = _TEXT_MODEL + module.removeprefix(_TEXT_MODEL) if component == "text_encoder" else module
            modules[_PREFIXES[component] + published.replace(".", "_")] = f"{component}.{published}"
    flats = dict.fromkeys(name.partition(".")[0] for name in tensors if re.match(_KOHYAS, name))
    if others := [flat for flat in flats if flat not in modules]:
        wrong = misfits({"not in its networks": others})
        raise ValueError(f"made for another model: {len(others)} of {len(flats)} adapted layers do not fit: {wrong}")
    renamed = {}
    for name, tensor in tensors.items():
        flat, _, factor = name.partition(".")
        known = flat in modules and factor in _FACTORS
        renamed[f"{modules[flat]}.{_FACTORS[factor]}" if known else name] = tensor
    return renamed
