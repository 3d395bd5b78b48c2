"""What finetuning trains, as one tree: LoRA of the text encoder, LoRA of the UNet, soft prompt tokens.

    {"text_encoder": {module: factors}, "unet": {module: factors}, "soft_prompt": {"embedding": ...}}

Any of the three may be absent.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fairjax.adapters import lora, soft_prompt
from fairjax.models.functional import Params

Bundle = dict[str, Any]

KINDS = ("text_encoder", "unet", "soft_prompt")
_TARGETS = {"text_encoder": lora.TEXT_ENCODER_TARGETS, "unet": lora.UNET_TARGETS}


def init(kinds: tuple[str, ...], params: dict[str, Params], rank: int, num_tokens: int, key: jax.Array) -> Bundle:
    """A bundle of the given kinds that changes nothing yet (a soft prompt always changes the prompt).

    Args:
        params: of the pipeline, by component.
        rank: of each LoRA.
        num_tokens: of the soft prompt.
    """
    bundle: Bundle = {}
    for number, kind in enumerate(KINDS):
        if kind in kinds and kind in _TARGETS:
            bundle[kind] = lora.init(params[kind], rank, jax.random.fold_in(key, number), _TARGETS[kind])
        elif kind in kinds:
            table = soft_prompt.token_embedding(params["text_encoder"])
            bundle[kind] = soft_prompt.init(table, num_tokens, jax.random.fold_in(key, number))
    return bundle


def check(bundle: Any) -> None:
    """Raises TypeError, one line, for what is no bundle and would change nothing."""
    if not isinstance(bundle, dict) or not set(bundle) <= set(KINDS):
        it = f"a dict of {', '.join(map(str, bundle))}" if isinstance(bundle, dict) else f"a {type(bundle).__name__}"
        raise TypeError(
            f"bundle is {it}: it must be adapters, as fairjax.load_adapter(PATH, pipeline) reads them and "
            "fairjax.finetune(...).bundle has them"
        )


def merge_text(text_params: Params, bundle: Bundle) -> Params:
    """The text encoder's parameters with what the bundle changes of them."""
    if "text_encoder" in bundle:
        text_params = lora.merge(text_params, bundle["text_encoder"])
    if "soft_prompt" in bundle:
        text_params = soft_prompt.append(text_params, bundle["soft_prompt"])
    return text_params


def merge_unet(unet_params: Params, bundle: Bundle) -> Params:
    """The UNet's parameters with what the bundle changes of them."""
    return lora.merge(unet_params, bundle["unet"]) if "unet" in bundle else unet_params


def merge(params: dict[str, Params], bundle: Bundle) -> dict[str, Params]:
    """The pipeline's parameters with the whole bundle merged in."""
    text, unet = merge_text(params["text_encoder"], bundle), merge_unet(params["unet"], bundle)
    return params | {"text_encoder": text, "unet": unet}


def num_tokens(bundle: Bundle) -> int:
    """How many soft tokens stand before each prompt."""
    return len(bundle["soft_prompt"]["embedding"]) if "soft_prompt" in bundle else 0


def prefix(ids: np.ndarray, bundle: Bundle, bos: int, eos: int, vocabulary: int) -> np.ndarray:
    """Token ids [n, length] with the soft tokens put in after the beginning, where the bundle has some."""
    count = num_tokens(bundle)
    return soft_prompt.prefix_ids(ids, bos, eos, count, vocabulary) if count else ids
