"""Soft tokens: trained embeddings put before every prompt.

They are textual-inversion tokens (Gal et al., 2022, arXiv 2208.01618): rows appended to the token embedding,
with ids from the vocabulary's size upwards. The paper trains five of them in place of LoRA (experiment 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fairjax.models.functional import Params

_LAYER, _LEAF = "token_embedding", "embedding"


class SoftPrompt(TypedDict):
    """The embeddings of the soft tokens, in the order in which they stand before the prompt."""

    embedding: Float[Array, "tokens width"]


def init(token_embedding: Float[Array, "vocabulary width"], num_tokens: int, key: jax.Array) -> SoftPrompt:
    """Soft tokens that start as the embeddings of distinct random words, as in the paper's code."""
    vocabulary = token_embedding.shape[0]
    if not 1 <= num_tokens <= vocabulary:
        raise ValueError(f"the number of soft tokens is {num_tokens}, it must be from 1 to {vocabulary}")
    words = jax.random.choice(key, vocabulary, (num_tokens,), replace=False)
    return from_words(token_embedding, words)


def from_words(token_embedding: Float[Array, "vocabulary width"], ids: Int[Array, " tokens"]) -> SoftPrompt:
    """Soft tokens that start as the embeddings of the given words, in float32."""
    return {"embedding": jnp.take(token_embedding, ids, axis=0).astype(jnp.float32)}


def append(text_params: Params, soft: SoftPrompt) -> Params:
    """A text encoder's parameters with the soft tokens at the end of its vocabulary.

    Differentiable in `soft`. Token ids vocabulary, ..., vocabulary + tokens - 1 then mean the soft tokens.

    Raises:
        ValueError: if the tree has no token embedding, or one of another width.
    """

    def appended(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if not _is_token_embedding(path):
            return leaf
        return jnp.concatenate([leaf, soft["embedding"].astype(leaf.dtype)])

    check_width(text_params, soft)
    return jax.tree_util.tree_map_with_path(appended, text_params)


def insert(text_params: Params, soft: SoftPrompt, ids: Sequence[int]) -> Params:
    """A text encoder's parameters with the soft tokens as the words `ids`, which its table may have room for or not."""

    def inserted(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if not _is_token_embedding(path):
            return leaf
        missing = max(0, max(ids) + 1 - len(leaf))
        return jnp.pad(leaf, ((0, missing), (0, 0))).at[np.array(ids)].set(soft["embedding"].astype(leaf.dtype))

    check_width(text_params, soft)
    return jax.tree_util.tree_map_with_path(inserted, text_params)


def check_width(text_params: Params, soft: SoftPrompt) -> None:
    """Raises a one-line ValueError where the soft tokens were made for another text encoder."""
    width, ours = token_embedding(text_params).shape[1], soft["embedding"].shape[1]
    if width != ours:
        raise ValueError(f"the soft tokens are {ours} wide, the text encoder's token embedding {width}")


def check_count(num_tokens: int, length: int) -> None:
    """Raises a one-line ValueError where so many soft tokens do not fit into prompts of `length` tokens."""
    if num_tokens > length - 2:
        raise ValueError(f"{num_tokens} soft tokens do not fit between the start and the end of {length} tokens")


def token_embedding(text_params: Params) -> Float[Array, "vocabulary width"]:
    """The token embedding of a text encoder's parameter tree."""
    found = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(text_params) if _is_token_embedding(path)]
    if len(found) != 1:
        raise ValueError(f"a text encoder has one {_LAYER}.{_LEAF}; these parameters have {len(found)}")
    return found[0]


def _is_token_embedding(path: tuple[Any, ...]) -> bool:
    return tuple(entry.key for entry in path[-2:]) == (_LAYER, _LEAF)


def prefix_ids(ids: Int[np.ndarray, "b length"], bos: int, eos: int, num_tokens: int, first_id: int) -> np.ndarray:
    """Tokenized prompts with the soft tokens between the start token and the text, in the same length.

    What no longer fits falls off at the end; a prompt whose end token falls off ends with one, as when the
    tokenizer itself truncates.

    Args:
        ids: start token, text, end token, padding (of any id, the end token's too).
        bos: id of the start token, which must begin every row.
        eos: id of the end token.
        num_tokens: how many soft tokens.
        first_id: id of the first soft token, the size of the vocabulary without them.
    """
    ids = np.asarray(ids)
    batch, length = ids.shape
    if np.any(ids[:, 0] != bos):
        raise ValueError(f"every prompt must begin with the start token {bos}")
    check_count(num_tokens, length)
    soft = np.broadcast_to(np.arange(first_id, first_id + num_tokens, dtype=ids.dtype), (batch, num_tokens))
    longer = np.concatenate([ids[:, :1], soft, ids[:, 1:]], axis=1)[:, :length]
    cut = ~np.any(longer == eos, axis=1)
    longer[cut, -1] = eos
    return longer
