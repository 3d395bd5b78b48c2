"""Model cards: what an adapter is, in words and numbers, beside its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fairjax import files
from fairjax.adapters.bundle import Bundle
from fairjax.config import PORTRAIT_GUIDANCE, Experiment
from fairjax.convert import adapters
from fairjax.hub import PORTRAITS, hub_id
from fairjax.program import legible

_KINDS = {
    "text_encoder": "LoRA of the text encoder", "unet": "LoRA of the UNet",
    "soft_prompt": "soft tokens before the prompt",
}  # fmt: skip

_BIAS, _DISTANCE = "bias", "total_variation"
"""What results call the measures: of a target that is even, and of one that is not the distance to it."""

_HOW = ("images_per_prompt", "evaluation_seed", "num_steps", "guidance_scale")
"""How results say that it was measured."""

_IMPORTS = "import torch\nfrom diffusers import StableDiffusionPipeline"

_PRECISION = ".to(torch.float32)"
"""Of folders in half precision diffusers leaves some networks in it, which then do not fit the others."""

_LIMITS = """## Limits

- Gender, race, skin tone and age are what a classifier perceives in pictures, in few and coarse classes. They are no
  facts about a person, and whoever fits none of the classes is counted as one of them all the same.
- Measured are the prompts and the classifiers named above. Other prompts, samplers and guidance scales may differ.
- Even shares say nothing of how people are shown. Look at the pictures before you publish them.
- The licence is that of the base model; the adapter adds no terms of its own."""


class Use(NamedTuple):
    """How exported weights are used."""

    model: str  # that they are for
    name: str  # of their file or folder
    code: str  # Python that draws a picture, where that file or folder is
    merged: bool = False  # whether they are the whole model's


def read_results(path: Path) -> dict[str, Any]:
    """What a run measured; raises ValueError, one line, where the file holds anything else."""
    results = files.read_json(path)
    try:
        _measured(results)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not what a run measures") from None
    return results


def write(folder: Path, bundle: Bundle, config: Experiment | None, results: Mapping[str, Any] | None, use: Use) -> None:
    """Writes `README.md` into a folder of exported weights.

    Args:
        config: of the run that made the adapter, if it is known.
        results: what the run measured of it (`results.json`), if it did.
    """
    files.write_text(folder / "README.md", card(bundle, config, results, use))


def card(bundle: Bundle, config: Experiment | None, results: Mapping[str, Any] | None, use: Use) -> str:
    """The model card, Markdown with a YAML header as hubs read it; arguments as for `write`."""
    is_lora = not use.merged and set(bundle) & {"text_encoder", "unet"}
    header = {
        "library_name": "diffusers", "base_model": legible(hub_id(use.model)[0]),
        "tags": ["text-to-image", "fairness", "fairjax"] + ["lora"] * bool(is_lora),
    }  # fmt: skip
    yaml = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in header.items())
    parts = [f"---\n{yaml}---\n\n# A fairer {_text(use.model)}", _about(bundle, config, use)]
    if results:
        parts.append(_measured(results))
    parts += [f"## Use\n\nWhere {_code(use.name)} is:\n\n```python\n{use.code}\n```", _LIMITS]
    return "\n\n".join(parts) + "\n"


def _about(bundle: Bundle, config: Experiment | None, use: Use) -> str:
    kinds = " and ".join(_KINDS[kind] for kind in _KINDS if kind in bundle)
    model = _code(use.model)
    what = f"{model} with {kinds} merged in" if use.merged else f"{kinds[0].upper()}{kinds[1:]} for {model}"
    elsewhere = f" on {_code(config.model)}" if config and config.model != use.model else ""
    method = (
        f"It was finetuned with fairjax{elsewhere} so that what pictures show of people follows a distribution that "
        "was chosen (Shen et al., [Finetuning Text-to-Image Diffusion Models for "
        "Fairness](https://arxiv.org/abs/2311.07604), ICLR 2024)."
    )
    if config is None:
        return f"{what}. {method} Which distribution, its maker has to say."
    target = config.target
    shares = {" x ".join(target.attributes): target.distribution} if target.distribution else target.marginals
    each = (f"{_text(name)} {' : '.join(f'{share:g}' for share in own)}" for name, own in shares.items())
    wished = f"{', '.join(each)} (classes in the classifier's order)" if shares else "evenly"
    count = len(target.prompts)
    others = f", and {count} subject{'s' * (count > 1)} with shares of their own" if count else ""
    others += f", and the shares of {_text(target.table)}" if target.table else ""
    here = f"{what}. {method} Here: {_text(' x '.join(target.attributes))}, {wished}{others}; seed {config.seed}."
    kept = " What else the classifiers tell of people was held near what it had been."
    return here + kept * bool(config.loss.other_attributes)


def _measured(results: Mapping[str, Any]) -> str:
    """Before and after, with intervals, as a table: bias, and where a target is not even the distance to it."""
    said = {name: _text(str(results[name])) for name in _HOW}
    said["classifiers"] = _text(", ".join(results["classifiers"]))
    targeted = {pair["of"]: pair["measure"] for pair in results["paired"]}
    lines = [
        "## Measured", "", f"| | a fair model measures | prompts | before | after {results['steps']:,} steps |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, floor in results["fair_floor"].items():
        for kind, before in results["before"].items():
            entries, shown = (before[name], results["after"][kind][name]), _text(kind.replace("_", " "))
            cells = " | ".join(_value(entry, "bias") for entry in entries)
            title = _text(name) + " (target)" * (targeted.get(name) == _BIAS)
            lines.append(f"| {title} | {floor:.2f} | {shown} | {cells} |")
            if targeted.get(name) == _DISTANCE:
                fair = _value(before[name], f"fair_{_DISTANCE}")
                cells = " | ".join(_value(entry, _DISTANCE) for entry in entries)
                lines.append(f"| {_text(name)}: distance to the target | {fair} | {shown} | {cells} |")
    lines += [
        "",
        f"Bias is the mean absolute difference of class frequencies, over {len(results['per_prompt'])} prompts of "
        f"{said['images_per_prompt']} images (seed {said['evaluation_seed']}, {said['num_steps']} steps, "
        f"guidance {said['guidance_scale']}), with 95% intervals. Classifiers: {said['classifiers']}.",
    ]
    if results["fair_floor"].keys() - targeted.keys():
        lines += ["", "What is no target should stay: there the bias that was before is the one to have."]
    if _DISTANCE in targeted.values():
        lines += [
            "",
            "Where the target is not even, the distance to it is what counts: half the sum of the absolute differences "
            "between class frequencies and wished shares (total variation).",
        ]
    return "\n".join(lines)


def _value(entry: Mapping[str, Any], measure: str) -> str:
    if entry.get(measure) is None:
        return "no faces"
    interval = entry.get(f"{measure}_interval")
    return f"{entry[measure]:.2f}" + (f" ({max(interval[0], 0):.2f} to {interval[1]:.2f})" if interval else "")


def _text(name: str) -> str:
    """What others named, as Markdown takes it for text alone: no link, no HTML, no new line."""
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", legible(name))


def _code(name: str) -> str:
    """The same as code."""
    return f"`{legible(name).replace('`', chr(39))}`"


def _quoted(text: str) -> str:
    """As Python has it between quotes."""
    return json.dumps(text, ensure_ascii=False)


def use_of_folder(bundle: Bundle, model: str, folder: str) -> Use:
    """How diffusers takes an adapter folder."""
    repository, revision = hub_id(model)
    pinned = f", revision={_quoted(revision)}" if revision else ""
    lines = _IMPORTS.splitlines()
    if model == PORTRAITS:
        lines += ["from fairjax.hub import find", "", f'base = find("{PORTRAITS}")  # it ships with fairjax']
    else:
        lines += ["", f"base = {_quoted(repository)}"]
    lines.append(f"pipe = StableDiffusionPipeline.from_pretrained(base{pinned}){_PRECISION}")
    if set(bundle) & {"text_encoder", "unet"}:
        lines.append(f"pipe.load_lora_weights({_quoted(folder)})")
    if "soft_prompt" in bundle:
        lines.append(
            f"pipe.load_textual_inversion({_quoted(f'{folder}/{adapters.EMBEDDINGS_FILE}')}, "
            f'token="{adapters.SOFT_TOKEN}")'
        )
    return Use(model, folder, "\n".join([*lines, _drawing(bundle, model)]))


def use_of_kohya(bundle: Bundle, model: str, file: str) -> Use:
    """The same for a file under kohya's names."""
    use = use_of_folder(bundle, model, file)
    told = "# AUTOMATIC1111 and ComfyUI read the file from their folder of LoRA; this is for diffusers"
    return use._replace(code=f"{told}\n{use.code}")


def use_of_pipeline(bundle: Bundle, model: str, folder: str) -> Use:
    """How diffusers takes a whole pipeline."""
    lines = [
        _IMPORTS, "",
        f"pipe = StableDiffusionPipeline.from_pretrained({_quoted(folder)}){_PRECISION}", _drawing(bundle, model),
    ]  # fmt: skip
    return Use(model, folder, "\n".join(lines), merged=True)


def _drawing(bundle: Bundle, model: str) -> str:
    """The line that draws: soft tokens before the prompt, and guidance that the model is made for."""
    prefix = f"{adapters.SOFT_TOKEN} " if "soft_prompt" in bundle else ""
    guidance = f", guidance_scale={PORTRAIT_GUIDANCE}" if model == PORTRAITS else ""
    return f'image = pipe("{prefix}a photo of the face of a doctor, a person"{guidance}).images[0]'
