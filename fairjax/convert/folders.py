"""Weights in folders, as diffusers and transformers lay them out: a `config.json` and safetensors beside it.

Reads single files and shards, in any float type; pickled weights are refused, because they can execute code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fairjax import files
from fairjax.convert.rules import from_torch, to_torch
from fairjax.models.functional import Network, Params
from fairjax.schema_errors import shown

WEIGHTS = "diffusion_pytorch_model"
"""How diffusers names the weights of its own networks; transformers says `model`."""

_TYPES = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")
"""Of the tensors in a safetensors file, those that numpy (with ml_dtypes) has too."""


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files that hold the weights `stem`: full precision before fp16, one file before shards.

    Raises:
        FileNotFoundError: one line naming what was looked for; pickled weights are said to be refused.
    """
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        for index in (
            folder / f"{stem}.safetensors.index{variant}.json",
            folder / f"{stem}{variant}.safetensors.index.json",
        ):
            if index.is_file():
                shards = files.read_json(index).get("weight_map")
                names = list(shards.values()) if isinstance(shards, dict) else [shards]
                for name in names:
                    if not isinstance(name, str) or Path(name).name != name:  # from elsewhere nothing is read
                        raise ValueError(f"{index}: weight_map names {shown(name)}, which is no file of its folder")
                return [folder / name for name in sorted(set(names))]
    pickled = next(
        (folder / f"{stem}{end}" for end in (".bin", ".pt", ".ckpt") if (folder / f"{stem}{end}").is_file()),
        None,
    )
    refused = f"; {pickled.name} is a pickle, which can execute code: save it as safetensors" if pickled else ""
    raise FileNotFoundError(f"{folder}: no {stem}.safetensors (or its shards, or an fp16 variant){refused}")


def read_tensors(path: Path, only: tuple[str, ...] = ("",)) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file whose names begin with one of `only`, and its metadata.

    Raises:
        FileNotFoundError, ValueError: one line naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name.startswith(only):
                    if (kind := file.get_slice(name).get_dtype()) not in _TYPES:
                        raise ValueError(f"{path}: {shown(name)} is of type {kind}, none of {', '.join(_TYPES)}")
                    tensors[name] = file.get_tensor(name)
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def read_weights(folder: Path, stem: str, only: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """The tensors of the weights `stem` by their PyTorch names: those that begin with one of `only`."""
    tensors: dict[str, np.ndarray] = {}
    for path in weight_files(folder, stem):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: a shard that the index names does not exist")
        tensors |= read_tensors(path, only)[0]
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all."""
    with files.whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # that of any new file: safetensors would keep its own from all other users
        save_file(dict(tensors), partial, metadata={"format": "pt"} | dict(metadata or {}))
        partial.chmod(mode)


def write_weights(folder: Path, stem: str, tensors: Mapping[str, np.ndarray], max_bytes: int = 5 * 10**9) -> None:
    """Writes tensors to one file, or, above `max_bytes`, to shards with an index as diffusers reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > max_bytes:
            shards.append({})
        shards[-1][name] = np.asarray(tensor, order="C")
    if len(shards) == 1:
        write_tensors(folder / f"{stem}.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    files.write_json(
        folder / f"{stem}.safetensors.index.json",
        {"metadata": {"total_size": size}, "weight_map": weight_map},
    )


def load(
    network: Network,
    folder: Path,
    stem: str,
    ignore: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
    prefix: str = "",
    only: tuple[str, ...] = ("",),
) -> Params:
    """Reads a network's parameters, as float32 numpy arrays.

    Under older spellings, `rename`d, they come out as the new ones: `save` writes the names of today.

    Args:
        ignore: endings of tensors that are expected and not needed.
        rename: what to replace in tensor names before they are matched (older spellings).
        prefix: put before the names of a file in which no tensor has it.
        only: beginnings of the names to read, where the file holds more than this network.

    Raises:
        ValueError: one line with the folder and what does not fit, as `from_torch` says it.
    """
    tensors = read_weights(folder, stem, only)
    if not any(name.startswith(prefix) for name in tensors):
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    for old, new in (rename or {}).items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    try:
        return from_torch(network.abstract, tensors, ignore)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def save(params: Params, folder: Path, stem: str, dtype: Any = np.float32, max_bytes: int = 5 * 10**9) -> None:
    """Writes a network's parameters under their PyTorch names."""
    tensors = {name: tensor.astype(dtype) for name, tensor in to_torch(jax.device_get(params)).items()}
    write_weights(folder, stem, tensors, max_bytes)
