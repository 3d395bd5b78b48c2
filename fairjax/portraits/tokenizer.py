"""A tokenizer of the embedded world, in CLIP's own format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"


def train(captions: Iterable[str], folder: Path, vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """Learns byte-pair merges on `captions`; writes `vocab.json`, `merges.txt` and the settings beside them."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (f" {word}".strip() for caption in captions for word in caption.lower().replace(",", " ,").split())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    vocab: dict[str, int] = {}
    for token in [
        *alphabet,
        *(f"{letter}</w>" for letter in alphabet),
        *("".join(m) for m in merges),
        _START,
        _END,
    ]:
        vocab.setdefault(token, len(vocab))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)
