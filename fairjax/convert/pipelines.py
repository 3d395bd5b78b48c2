"""What is around and inside the networks of a pipeline in its folder, as diffusers lays it out."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from fairjax.convert import folders
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.models.clip import CLIPTextConfig
from fairjax.models.functional import Network, Params
from fairjax.models.unet import UNetConfig
from fairjax.models.vae import VAEConfig

OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""How the first diffusers releases named the autoencoder's attention; Stable Diffusion 1.x still does."""


def noise_schedule(fields: Mapping[str, Any]) -> NoiseSchedule:
    """That of a `scheduler_config.json` as `StableDiffusionPipeline` has it, which puts two of its fields right."""
    has_offset = "steps_offset" in fields or fields.get("_class_name") != "DPMSolverSinglestepScheduler"
    offset = {"steps_offset": 1} if has_offset else {}
    return dataclasses.replace(NoiseSchedule.from_dict(fields), clip_sample=False, **offset)


def unet_config(fields: Mapping[str, Any]) -> UNetConfig:
    """The same of a UNet's: before diffusers 0.9 many said half the side of the latents."""
    config = UNetConfig.from_dict(fields)
    old = re.match(r"0\.[0-8](?!\d)", str(fields.get("_diffusers_version")))
    small = isinstance(config.sample_size, int) and config.sample_size < 64
    return dataclasses.replace(config, sample_size=64) if old and small else config


def with_vectors(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """A prompt in which a textual inversion of several vectors is all its words, `<a> <a>_1 ...`, as in diffusers."""
    added = tokenizer.added_tokens_encoder
    if not any(word.endswith("_1") for word in added):
        return prompt
    for word in sorted(set(tokenizer.tokenize(prompt)) & added.keys()):
        others = itertools.takewhile(added.__contains__, (f"{word}_{number}" for number in itertools.count(1)))
        prompt = prompt.replace(word, " ".join([word, *others]))
    return prompt


def latent_shape(folder: Path, text: CLIPTextConfig, unet: UNetConfig, vae: VAEConfig) -> tuple[int, int, int]:
    """h, w, c of the latents; raises ValueError where the networks do not fit each other, or say no size."""
    if set(unet.attended("cross_attention_dim")) != {text.hidden_size}:
        raise ValueError(
            f"{folder}: cross_attention_dim = {unet.cross_attention_dim} of the unet must be the "
            f"hidden_size = {text.hidden_size} of the text encoder"
        )
    channels = unet.in_channels, unet.out_channels, vae.latent_channels
    if len(set(channels)) > 1:
        raise ValueError(
            f"{folder}: in_channels = {channels[0]} and out_channels = {channels[1]} of the unet must be the "
            f"latent_channels = {channels[2]} of the vae"
        )
    if unet.sample_size is None:  # diffusers has no default here either
        raise ValueError(
            f"{folder}: sample_size = None of the unet must be the side of its latents, or height and width"
        )
    height, width = unet.sample_size if isinstance(unet.sample_size, tuple) else (unet.sample_size,) * 2
    smallest = 2 ** (len(unet.block_out_channels) - 1)
    if height % smallest or width % smallest:
        raise ValueError(f"{folder}: sample_size = {unet.sample_size} of the unet must be multiples of {smallest}")
    return height, width, unet.in_channels


def read_tokenizer(folder: Path, text: CLIPTextConfig) -> CLIPTokenizer:
    """Reads the tokenizer.

    Raises:
        FileNotFoundError, ValueError: one line, where it is not there, is damaged, or pads prompts to more tokens than
            the text encoder takes.
    """
    if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder}: no vocab.json or tokenizer.json")
    most = text.max_position_embeddings
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        length = int(tokenizer.model_max_length)
        if length <= most:  # else prompts would be padded to whatever it says
            ids = tokenizer(["a photo"], padding="max_length", truncation=True).input_ids[0]
            special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            fits = max(*ids, *special) < text.vocab_size and ids[0] == special[0] and special[1] in ids
    except Exception as error:  # of many kinds, for files of many kinds
        raise ValueError(f"{folder} is no CLIP tokenizer: {' '.join(str(error).split())}") from None
    if not 2 < length <= most:  # 1e30 where its files do not say: diffusers fails there too
        raise ValueError(
            f"{folder}: model_max_length = {length} is more than the text encoder's max_position_embeddings = {most}, "
            "or has no room for a word"
        )
    if not fits:
        raise ValueError(
            f"{folder} is not the text encoder's tokenizer: prompts do not begin and end in its vocabulary of "
            f"{text.vocab_size} words"
        )
    return tokenizer


def load(networks: dict[str, Network], folder: Path) -> dict[str, Params]:
    """The parameters of a pipeline's networks; raises FileNotFoundError and ValueError as `folders.load` does."""
    text, unet, vae = (networks[name] for name in ("text_encoder", "unet", "vae"))
    return {  # newer transformers name a text encoder's tensors without `text_model.`, all published files with it
        "text_encoder": folders.load(text, folder / "text_encoder", "model", ("position_ids",), prefix="text_model."),
        "unet": folders.load(unet, folder / "unet", folders.WEIGHTS),
        "vae": folders.load(vae, folder / "vae", folders.WEIGHTS, rename=OLD_ATTENTION),
    }
