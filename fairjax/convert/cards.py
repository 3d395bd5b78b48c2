"""Model cards: what an adapter is, in words and numbers, beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairjax import files
from fairjax.adapters.bundle import Bundle
from fairjax.config import Experiment
from fairjax.convert import adapters, folders
from fairjax.hub import hub_id

_KINDS = {
    "text_encoder": "LoRA of the text encoder", "unet": "LoRA of the UNet",
    "soft_prompt": "soft tokens before the prompt",
}  # fmt: skip

_LIMITS = """## Limits

- Gender, race, skin tone and age are what a classifier perceives in pictures, in few and coarse classes. They are no
  facts about a person, and people whom the classes leave out are left out of the balance.
- Measured are the prompts and the classifiers named above. Other prompts, samplers and guidance scales may differ.
- Even shares say nothing of how people are shown. Look at the pictures before you publish them.
- The licence is that of the base model; the adapter adds no terms of its own."""


def read_results(path: Path) -> dict[str, Any]:
    """What a run measured; raises ValueError, one line, where the file holds anything else."""
    results = folders.read_json(path)
    try:
        _measured(results)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not what a run measures") from None
    return results


def write(folder: Path, bundle: Bundle, config: Experiment | None, results: Mapping[str, Any] | None, use: str) -> None:
    """Writes `README.md` into a folder of exported weights.

    Args:
        config: of the run that made the adapter, if it is known.
        results: what the run measured (`results.json`), if it did.
        use: lines of Python that use the weights.
    """
    files.write_text(folder / "README.md", card(bundle, config, results, use))


def card(bundle: Bundle, config: Experiment | None, results: Mapping[str, Any] | None, use: str) -> str:
    """The model card, Markdown with a YAML header as hubs read it; arguments as for `write`."""
    kinds = " and ".join(_KINDS[kind] for kind in _KINDS if kind in bundle)
    header = {"library_name": "diffusers", "tags": ["text-to-image", "fairness", "fairjax"]}
    if config:
        header |= {"base_model": hub_id(config.model)[0]}
    if set(bundle) & {"text_encoder", "unet"}:
        header["tags"] = [*header["tags"], "lora"]
    yaml = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in header.items())
    parts = [f"---\n{yaml}---\n\n# A fairer {config.model if config else 'text-to-image model'}", _about(kinds, config)]
    if results:
        parts.append(_measured(results))
    parts += [f"## Use\n\n```python\n{use.strip()}\n```", _LIMITS]
    return "\n\n".join(parts) + "\n"


def _about(kinds: str, config: Experiment | None) -> str:
    method = (
        "It was finetuned with fairjax so that what pictures show of people follows a distribution that was chosen "
        "(Shen et al., [Finetuning Text-to-Image Diffusion Models for Fairness](https://arxiv.org/abs/2311.07604), "
        "ICLR 2024)."
    )
    if config is None:
        return f"{kinds}. {method} Which distribution, its maker has to say."
    target = config.target
    wished = "evenly" if not (target.distribution or target.marginals) else str(target.distribution or target.marginals)
    others = f", and {len(target.prompts)} prompts with shares of their own" if target.prompts else ""
    others += f", and the shares of {target.table}" if target.table else ""
    return (
        f"{kinds} for `{config.model}`. {method} Here: {' x '.join(target.attributes)}, {wished}{others}; "
        f"{config.training.steps:,} steps, seed {config.seed}."
    )


def _measured(results: Mapping[str, Any]) -> str:
    """Bias before and after, with intervals, as a table."""
    lines = [
        "## Measured",
        "",
        "| | a fair model measures | prompts | before | after |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, floor in results["fair_floor"].items():
        for kind in results["before"]:
            cells = [_value(results[when][kind][name]) for when in ("before", "after")]
            lines.append(f"| {name} | {floor:.2f} | {kind.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Bias is the mean absolute difference of class frequencies, over {len(results['per_prompt'])} prompts of "
        f"{results['images_per_prompt']} images (seed {results['evaluation_seed']}, {results['num_steps']} steps, "
        f"guidance {results['guidance_scale']}), with 95% intervals. Classifiers: {', '.join(results['classifiers'])}.",
    ]
    return "\n".join(lines)


def _value(entry: Mapping[str, Any]) -> str:
    if entry.get("bias") is None:
        return "no faces"
    interval = entry.get("bias_interval")
    return f"{entry['bias']:.2f}" + (f" ({max(interval[0], 0):.2f} to {interval[1]:.2f})" if interval else "")


def use_of_folder(bundle: Bundle, model: str, folder: str) -> str:
    """How diffusers takes an adapter folder."""
    repository, revision = hub_id(model)
    pinned = f', revision="{revision}"' if revision else ""
    lines = [
        "from diffusers import StableDiffusionPipeline",
        "",
        f'pipe = StableDiffusionPipeline.from_pretrained("{repository}"{pinned})',
    ]
    if set(bundle) & {"text_encoder", "unet"}:
        lines.append(f'pipe.load_lora_weights("{folder}")')
    prompt = "a photo of the face of a doctor, a person"
    if "soft_prompt" in bundle:
        lines.append(
            f'pipe.load_textual_inversion("{folder}/{adapters.EMBEDDINGS_FILE}", token="{adapters.SOFT_TOKEN}")'
        )
        prompt = f"{adapters.SOFT_TOKEN} {prompt}"
    return "\n".join([*lines, f'image = pipe("{prompt}").images[0]'])


def use_of_pipeline(bundle: Bundle, folder: str) -> str:
    """How diffusers takes a whole pipeline."""
    prefix = f"{adapters.SOFT_TOKEN} " if "soft_prompt" in bundle else ""
    return (
        f'from diffusers import StableDiffusionPipeline\n\npipe = StableDiffusionPipeline.from_pretrained("{folder}")\n'
        f'image = pipe("{prefix}a photo of the face of a doctor, a person").images[0]'
    )
