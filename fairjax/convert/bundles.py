"""Adapter folders: what a finetuning leaves, as the PyTorch world reads it.

pytorch_lora_weights.safetensors    LoRA of the text encoder and the UNet, for `load_lora_weights`
learned_embeds.safetensors          soft prompt tokens, for `load_textual_inversion`
"""

from __future__ import annotations

from pathlib import Path

from fairjax.adapters import soft_prompt
from fairjax.adapters.bundle import Bundle
from fairjax.convert import adapters
from fairjax.pipeline import Pipeline

ADAPTER = "adapter"
"""Where in a run folder the adapter is."""


def save_adapter(bundle: Bundle, pipeline: Pipeline, folder: Path) -> None:
    """Writes the bundle's parts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = {"text_encoder": pipeline.text_encoder.abstract, "unet": pipeline.unet.abstract}
    loras = {kind: adapters.Lora(bundle[kind], 1.0) for kind in networks if kind in bundle}
    if loras:
        adapters.save_lora(folder / adapters.LORA_FILE, networks, loras)
    if "soft_prompt" in bundle:
        adapters.save_soft_prompt(folder / adapters.EMBEDDINGS_FILE, bundle["soft_prompt"])


def load_adapter(folder: str | Path, pipeline: Pipeline) -> Bundle:
    """Reads an adapter folder, a run folder that has one in it, or a LoRA file from diffusers or PEFT.

    Raises:
        ValueError, OSError: one line, where nothing is there or it was made for another model.
    """
    path = Path(folder)
    if (path / ADAPTER).is_dir():
        path = path / ADAPTER
    networks = {"text_encoder": pipeline.text_encoder.abstract, "unet": pipeline.unet.abstract}
    bundle: Bundle = {}
    embeddings = path / adapters.EMBEDDINGS_FILE
    if embeddings.is_file():
        bundle["soft_prompt"] = _load_soft_prompt(embeddings, pipeline)
    if not bundle or (path / adapters.LORA_FILE).is_file():
        for kind, (factors, scale) in adapters.load_lora(path, networks).items():
            bundle[kind] = {module: {"down": f["down"] * scale, "up": f["up"]} for module, f in factors.items()}
    return bundle


def _load_soft_prompt(path: Path, pipeline: Pipeline) -> soft_prompt.SoftPrompt:
    soft = adapters.load_soft_prompt(path)[1]
    try:
        soft_prompt.check_width(pipeline.text_encoder.abstract, soft)
        soft_prompt.check_count(len(soft["embedding"]), pipeline.tokenizer.model_max_length)
    except ValueError as error:
        raise ValueError(f"{path}: made for another model: {error}") from None
    return soft
