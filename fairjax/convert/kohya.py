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

    The alphas of a component are one number, that of its largest rank: diffusers mistakes which module has which. What
    modules of smaller ranks would be too large by is taken off their `lora_up`.

    Args:
        scales: by component, alpha / rank.
    """
    down, up = ".lora_A.weight", ".lora_B.weight"
    modules = [name.removesuffix(down) for name in tensors if name.endswith(down)]
    ranks = {module: tensors[module + down].shape[0] for module in modules}
    largest = {component: max(ranks[m] for m in modules if m.startswith(f"{component}.")) for component in scales}
    renamed: dict[str, np.ndarray] = {}
    for module in modules:
        component, _, path = module.partition(".")
        flat, part = _PREFIXES[component] + path.replace(".", "_"), ranks[module] / largest[component]
        renamed[f"{flat}.lora_down.weight"] = tensors[module + down]
        renamed[f"{flat}.lora_up.weight"] = tensors[module + up] * np.float32(part)
        renamed[f"{flat}.alpha"] = np.asarray(scales[component] * largest[component], np.float32)
    return renamed


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
