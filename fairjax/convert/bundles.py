"""Adapters as folders and files of the PyTorch world: what a finetuning leaves, and what others left.

pytorch_lora_weights.safetensors    LoRA of the text encoder and the UNet, for `load_lora_weights`
learned_embeds.safetensors          soft prompt tokens, for `load_textual_inversion`
README.md                           what it is, as a model card
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairjax import arguments, files, kinds
from fairjax.adapters import bundle as bundles
from fairjax.adapters import soft_prompt
from fairjax.adapters.bundle import Bundle
from fairjax.config import ADAPTER
from fairjax.convert import adapters, folders
from fairjax.pipeline import Pipeline

_COPIED = ("scheduler/*", "tokenizer/*")
"""Of a pipeline's folder, what is not written anew."""

_CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"), "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "DPMSolverMultistepScheduler"),
}  # fmt: skip
"""What diffusers reads each part of a pipeline's folder as, where the index of its source says nothing else."""


def save_adapter(bundle: Bundle, pipeline: Pipeline, folder: str | Path) -> None:
    """Writes the bundle's parts into `folder`, in place of an adapter there, as diffusers and `load_adapter` read them.

    Args:
        pipeline: what they were trained for, whose modules name their factors.
    """
    bundles.check(bundle)
    arguments.given("pipeline", pipeline, Pipeline)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lora_file, embeddings = folder / adapters.LORA_FILE, folder / adapters.EMBEDDINGS_FILE
    if loras := _loras(bundle):
        adapters.save_lora(lora_file, _networks(pipeline), loras)
    else:  # one that was here would be read as a part of this
        lora_file.unlink(missing_ok=True)
    if "soft_prompt" in bundle:
        adapters.save_soft_prompt(embeddings, bundle["soft_prompt"])
    else:
        embeddings.unlink(missing_ok=True)


def save_kohya(bundle: Bundle, pipeline: Pipeline, path: Path) -> None:
    """Writes a LoRA under kohya's names, which AUTOMATIC1111 and ComfyUI read.

    Raises:
        ValueError: one line, where there is no LoRA in the bundle, or soft tokens besides.
    """
    if "soft_prompt" in bundle:
        raise ValueError("soft tokens have no place in kohya's format: write them with --to diffusers")
    path.parent.mkdir(parents=True, exist_ok=True)
    adapters.save_lora(path, _networks(pipeline), _loras(bundle), names="kohya")


def save_pipeline(bundle: Bundle, pipeline: Pipeline, folder: Path, dtype: Any = np.float32) -> None:
    """Writes the whole pipeline with the bundle merged in, as a folder that diffusers reads.

    Soft tokens become words of its tokenizer: prompts must begin with the first of them, `<fair>`.

    Raises:
        ValueError: one line, where the model has such words already.
    """
    merged, tokenizer = bundles.merge(pipeline.params, _loras_of(bundle)), None
    if "soft_prompt" in bundle:
        tokenizer, ids = _with_words(pipeline, bundles.num_tokens(bundle))
        merged |= {"text_encoder": soft_prompt.insert(merged["text_encoder"], bundle["soft_prompt"], ids)}
    for path in [path for part in _COPIED for path in pipeline.folder.glob(part) if path.is_file()]:
        copy = folder / path.relative_to(pipeline.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(copy) as partial:
            partial.write_bytes(path.read_bytes())
    files.write_json(folder / kinds.INDEX, _index(pipeline.folder))
    files.write_json(folder / kinds.OWN, {"guidance_scale": pipeline.guidance_scale})
    for name, stem in (("text_encoder", "model"), ("unet", folders.WEIGHTS), ("vae", folders.WEIGHTS)):
        fields = files.read_json(pipeline.folder / name / "config.json")
        if name == "text_encoder":
            fields["vocab_size"] = int(soft_prompt.token_embedding(merged[name]).shape[0])
            # what transformers would read it in, where diffusers reads the others in float32
            fields |= {key: "float32" for key in ("dtype", "torch_dtype") if key in fields}
        files.write_json(folder / name / "config.json", fields)
        folders.save(merged[name], folder / name, stem, dtype)
    if tokenizer:
        tokenizer.save_pretrained(folder / "tokenizer")


def _with_words(pipeline: Pipeline, count: int) -> tuple[Any, list[int]]:
    """A pipeline's tokenizer with soft tokens as words of its own, and what it numbers them."""
    tokenizer = type(pipeline.tokenizer).from_pretrained(pipeline.folder / "tokenizer")
    words = [adapters.SOFT_TOKEN, *(f"{adapters.SOFT_TOKEN}_{number}" for number in range(1, count))]
    if known := sorted(set(words) & set(tokenizer.get_vocab())):
        raise ValueError(f"the model has soft tokens of its own already, {known[0]}, which are not written over")
    tokenizer.add_tokens(words)
    return tokenizer, tokenizer.convert_tokens_to_ids(words)


def _loras_of(bundle: Bundle) -> Bundle:
    return {kind: adapter for kind, adapter in bundle.items() if kind != "soft_prompt"}


def _index(source: Path) -> dict[str, Any]:
    """`model_index.json` of what is written, and of no more: diffusers looks for every part that it names."""
    path = source / kinds.INDEX
    theirs = files.read_json(path) if path.is_file() else {}
    parts = {name: theirs.get(name, usual) for name, usual in _CLASSES.items()}
    left_out = dict.fromkeys(("safety_checker", "feature_extractor"), (None, None))
    return {"_class_name": kinds.PIPELINE, **parts, **left_out, "requires_safety_checker": False}


def load_adapters(sources: Sequence[str | Path], pipeline: Pipeline) -> Bundle:
    """Reads several adapters as one, such as LoRA of the text encoder and of the UNet from two files.

    Raises:
        ValueError, OSError: as `load_adapter`, and where two of them are of one kind.
    """
    bundle: Bundle = {}
    for source in sources:
        found = load_adapter(source, pipeline)
        if twice := sorted(set(found) & set(bundle)):
            raise ValueError(f"{source} holds a second {twice[0]} adapter: name each kind once")
        bundle |= found
    return bundle


def load_adapter(source: str | Path, pipeline: Pipeline) -> Bundle:
    """Reads an adapter folder, a run folder that has one in it, or a file.

    Files are LoRA from diffusers, PEFT or kohya, textual inversions, and what the paper's authors released (.pth).

    Raises:
        ValueError, OSError: one line, where nothing is there or it was made for another model.
    """
    arguments.given("pipeline", pipeline, Pipeline)
    path = Path(source)
    if (path / ADAPTER).is_dir():
        path = path / ADAPTER
    bundle: Bundle = {}
    embeddings = path if path.is_file() else adapters.embeddings_in(path)
    if embeddings.is_file() and adapters.is_soft_prompt(embeddings):
        bundle["soft_prompt"] = _load_soft_prompt(embeddings, pipeline)
        if path.is_file():
            return bundle
    if not bundle or adapters.has_lora(path):
        for kind, (factors, scale) in adapters.load_lora(path, _networks(pipeline)).items():
            bundle[kind] = {module: {"down": f["down"] * scale, "up": f["up"]} for module, f in factors.items()}
    return bundle


def _networks(pipeline: Pipeline) -> dict[str, Any]:
    return {"text_encoder": pipeline.text_encoder.abstract, "unet": pipeline.unet.abstract}


def _loras(bundle: Bundle) -> dict[str, adapters.Lora]:
    return {kind: adapters.Lora(bundle[kind], 1.0) for kind in ("text_encoder", "unet") if kind in bundle}


def _load_soft_prompt(path: Path, pipeline: Pipeline) -> soft_prompt.SoftPrompt:
    soft = adapters.load_soft_prompt(path)[1]
    try:
        soft_prompt.check_width(pipeline.text_encoder.abstract, soft)
        soft_prompt.check_count(len(soft["embedding"]), pipeline.tokenizer.model_max_length)
    except ValueError as error:
        raise ValueError(f"{path}: made for another model: {error}") from None
    return soft
