"""Writes the pretrained world as one folder: a diffusers pipeline, and beside it what judges its pictures."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fairjax import files
from fairjax.config import PORTRAIT_GUIDANCE
from fairjax.convert import folders
from fairjax.faces import classifier as classifiers
from fairjax.kinds import OWN
from fairjax.models.clip import CLIPTextConfig, CLIPVisionConfig
from fairjax.models.functional import Params
from fairjax.portraits import recipe
from fairjax.program import UserError

if TYPE_CHECKING:
    from fairjax.portraits.pretrain import Pretraining

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
"""Where the package keeps the model that it ships with."""

_SHARD = 4_000_000
"""Bytes in a file at most, so that no file of the repository is large."""

_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def check(folder: Path) -> None:
    """Raises UserError unless an export may take the place of what is at `folder`: an earlier one, or nothing."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "model_index.json").is_file():
        raise UserError(f"--output = {str(folder)!r} holds something else than a model: choose a new name")


def export(work: Pretraining, folder: Path) -> None:
    """Writes every network of `work`, in half precision, into `folder`; once all is written, an earlier export goes.

    Raises:
        UserError: there is something else.
    """
    check(folder)
    partial, old = (folder.with_name(f"{folder.name}.{what}") for what in ("partial", "old"))
    for left in (partial, old):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    _write_all(work, partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_all(work: Pretraining, folder: Path) -> None:
    folder.mkdir(parents=True)
    files.write_json(folder / "model_index.json", _INDEX)
    files.write_json(folder / OWN, {"guidance_scale": PORTRAIT_GUIDANCE})
    files.write_json(folder / "scheduler" / "scheduler_config.json", recipe.SCHEDULER)
    work.tokenizer.save_pretrained(folder / "tokenizer")
    for name in ("vocab.json", "merges.txt"):  # what older readers want
        shutil.copy(work.folder / "tokenizer" / name, folder / "tokenizer" / name)
    text, vision = recipe.text(work.tokenizer), recipe.VISION
    scaling = {"scaling_factor": work.latents.scaling_factor}
    clip = work.clip
    _write(folder / "unet", folders.WEIGHTS, "UNet2DConditionModel", recipe.UNET, work.unet)
    _write(folder / "vae", folders.WEIGHTS, "AutoencoderKL", recipe.VAE, work.vae, **scaling)
    _write(folder / "text_encoder", "model", "CLIPTextModel", text, {"text_model": clip["text_model"]})
    _write_clip(folder / "image_semantics", text, vision, clip)
    work.tokenizer.save_pretrained(folder / "image_semantics")
    as_they_are = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # of pixels in [0, 1]: what it sees is in [-1, 1]
    files.write_json(folder / "image_semantics" / "preprocessor_config.json", as_they_are)
    for name in ("classifier", "classifier_eval"):
        classifiers.save(work.classifier_network(name), work.classifier(name), folder / name, np.float16)
        classifiers.save_errors(work.classifier_network(name), work.errors(name), folder / name)
    classifiers.save(work.face_network, work.face, folder / "face_embedding", np.float16)
    folders.write_weights(folder / "face_embedding", "bank", work.bank)


def _write_clip(folder: Path, text: CLIPTextConfig, vision: CLIPVisionConfig, params: Params) -> None:
    """Both towers, as transformers' `CLIPModel`: what an image means, and whether it is what a prompt asks for."""
    towers = {"text_config": dataclasses.asdict(text), "vision_config": dataclasses.asdict(vision)}
    for name in towers:
        towers[name]["model_type"] = f"clip_{name.removesuffix('_config')}_model"
    kind = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": vision.projection_dim}
    files.write_json(folder / "config.json", kind | towers)
    folders.save(jax.tree.map(np.asarray, params), folder, "model", np.float16, _SHARD)


def _write(folder: Path, stem: str, name: str, config: Any, params: Params, **measured: float) -> None:
    if isinstance(config, CLIPTextConfig):
        kind = {"architectures": [name], "model_type": "clip_text_model"}
    else:
        kind = {"_class_name": name}
    fields = kind | dataclasses.asdict(config) | measured
    files.write_json(folder / "config.json", fields)
    folders.save(jax.tree.map(np.asarray, params), folder, stem, np.float16, _SHARD)
