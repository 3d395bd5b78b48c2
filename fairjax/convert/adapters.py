"""Adapters as files that diffusers reads, and the formats in which others wrote theirs.

LoRA is written as diffusers' `save_lora_weights` does (`unet.<module>.lora_A.weight`, with rank and alpha in
the file's metadata) or under kohya's names, and read in these formats, in diffusers' older ones, and as peft writes it.
A soft prompt is a textual inversion of several vectors under one token: `load_textual_inversion`, "<fair> a photo ...".

    down [in, rank] <-> lora_A.weight [rank, in]          up [rank, out] <-> lora_B.weight [out, rank]
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax import files
from fairjax.adapters import lora
from fairjax.adapters.soft_prompt import SoftPrompt
from fairjax.convert import folders, kohya
from fairjax.convert.pickles import read_state_dict
from fairjax.models.configs import typed
from fairjax.models.functional import Params
from fairjax.schema_errors import shown

LORA_FILE = "pytorch_lora_weights.safetensors"
EMBEDDINGS_FILE = "learned_embeds.safetensors"
SOFT_TOKEN = "<fair>"
_PEFT_FILES, _PEFT_CONFIG = ("adapter_model.safetensors", "adapter_model.bin"), "adapter_config.json"
_METADATA = "lora_adapter_metadata"  # diffusers' key in the header of a safetensors file
_TEXT_MODEL = "text_model."  # in every published file; newer transformers have dropped it from the module names
_MOST_LISTED = 4
PICKLES = (".pt", ".pth", ".bin")
_OLD_LORA_FILE, _OLD_EMBEDDINGS_FILE = "pytorch_lora_weights.bin", "learned_embeds.bin"
_LORA_FILES = (LORA_FILE, *_PEFT_FILES, _OLD_LORA_FILE)
_ONLY = {
    # others take something off the model's own weights, which no file has
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal", "mica"),
    "alora_invocation_tokens": (None,),
    "layer_replication": (None,),
}
"""Values with which peft computes what the factors alone say."""
_BANKS = (".pkl", ".npy", ".npz")
_LOGITS = "classifier.3.bias"  # of MobileNetV3, the authors' and ours
_TOKEN_EMBEDDING = "token_embedding.weight"


class Lora(NamedTuple):
    """An adapter and the factor of its change: `lora.merge(params, *lora)`."""

    adapter: lora.Adapter
    scale: float  # alpha / rank


# How each format names the factors of a module; the first group is the module.
_FORMATS = (
    (r"(.+)\.lora_(?P<factor>A|B)(?:\.[^.]+)?\.weight", r"\1"),  # peft, and diffusers since 0.22
    (r"(.+)\.lora(?:_linear_layer)?\.(?P<factor>down|up)\.weight", r"\1"),  # diffusers until then
    (
        r"(.+self_attn)\.to_(q|k|v|out)_lora\.(?P<factor>down|up)\.weight",
        r"\1.\2_proj",
    ),  # its first text encoders
    (r"(.+)\.to_out_lora\.(?P<factor>down|up)\.weight", r"\1.to_out.0"),  # its attention processors
    (r"(.+)\.to_(q|k|v)_lora\.(?P<factor>down|up)\.weight", r"\1.to_\2"),
    (r"(.+?)(?:\.lora|\.lora_linear_layer)?\.(?P<factor>alpha)", r"\1"),
)
_FACTORS = {"A": "down", "B": "up"}

_PATTERN = r"\^?([\w-]|\\?\.)+(\.\*([\w-]|\\?\.)+)?\$?"
"""A module's name or a part of it, as a regular expression, with one gap in it at most."""


def save_lora(
    path: str | Path, networks: Mapping[str, Params], loras: Mapping[str, Lora], names: str = "diffusers"
) -> None:
    """Writes adapters as one file for `StableDiffusionPipeline.load_lora_weights`.

    Args:
        networks: by component (`text_encoder`, `unet`), the parameter tree that it adapts; abstract will do.
        loras: by component, what to write.
        names: "diffusers", or "kohya" for AUTOMATIC1111 and ComfyUI.
    """
    tensors, metadata = {}, {}
    for component, (adapter, scale) in loras.items():
        lora.check(networks[component], adapter)
        kernels = lora.kernels(networks[component])
        for module, factors in adapter.items():
            name = f"{component}.{_published(component, module)}"
            window = (1,) * (len(kernels[module].shape) - 2)  # of a convolution
            tensors[f"{name}.lora_A.weight"] = _to_torch(factors["down"], window)
            tensors[f"{name}.lora_B.weight"] = _to_torch(factors["up"], window)
        metadata |= {f"{component}.{key}": value for key, value in _peft_config(adapter, scale).items()}
    header = {}
    if names == "kohya":
        tensors = kohya.to_kohya(tensors, {component: scale for component, (_, scale) in loras.items()})
    else:
        header[_METADATA] = json.dumps(metadata, sort_keys=True)
    folders.write_tensors(Path(path), tensors, header)


def load_lora(path: str | Path, networks: Mapping[str, Params]) -> dict[str, Lora]:
    """Reads a LoRA file, or a folder that diffusers or peft wrote, as float32 adapters by component.

    Pickles (.pt, .pth), such as the paper's authors released, are read by PyTorch's weights-only unpickler.

    Args:
        networks: by component, the parameter tree that the file may adapt; abstract will do.

    Raises:
        ValueError: in one line, listing what does not fit.
        OSError: if there is no such file.
    """
    path = Path(path)
    file, configs = path, {}
    if path.is_dir():
        file = next((path / name for name in _LORA_FILES if (path / name).exists()), path / LORA_FILE)
    tensors, metadata = read(file)
    if (config := file.with_name(_PEFT_CONFIG)).exists() and file.name in _PEFT_FILES:
        configs = {"": files.read_json(config)}
    elif _METADATA in metadata:
        flat = files.parse_json(metadata[_METADATA], f"{file}: its {_METADATA}")
        configs = {
            component: {key.removeprefix(f"{component}."): flat[key] for key in flat if key.startswith(f"{component}.")}
            for component in networks
        }
        if not any(configs.values()):  # as a network's own `save_lora_adapter` writes it
            configs = {"": flat}
    try:
        return lora_from_torch(tensors, networks, {name: _Scaling.of(config) for name, config in configs.items()})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def lora_from_torch(
    tensors: Mapping[str, np.ndarray],
    networks: Mapping[str, Params],
    configs: Mapping[str, _Scaling],
) -> dict[str, Lora]:
    """Adapters from the tensors of any of the formats above; arguments and errors as for `load_lora`.

    Args:
        configs: by component (or "", for names without one), what peft's `LoraConfig` says, if any.
    """
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    problems, others = [], set()
    tensors = kohya.from_kohya(tensors, networks)
    for name, tensor in tensors.items():
        if (parsed := _parse(name, networks)) is None:
            problems.append(f"{name} is not of a known LoRA format")
        elif parsed[0] not in networks:
            others.add(parsed[0])
        else:
            component, module, factor = parsed
            kinds = "fViu" if factor == "alpha" else "fV"  # bfloat16 is none of numpy's own
            if np.asarray(tensor).dtype.kind not in kinds:
                problems.append(f"{name} is of type {tensor.dtype}, expected floating point")
            factors = found.setdefault(component, {}).setdefault(module, {})
            if factor in factors:
                problems.append(f"{name} is a second {factor} of its layer: save one adapter at a time")
            factors[factor] = np.asarray(tensor, np.float32)
    problems += [f"it adapts the {component} too, which is not wanted here" for component in sorted(others)]
    for component, modules in found.items():
        problems += _misfits(component, modules)
    if not found and not problems:
        problems.append("there are no LoRA weights in it")
    if problems:
        more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise ValueError("; ".join(problems[:_MOST_LISTED]) + more)

    loras = {}
    for component, modules in found.items():
        adapter = {name: {f: _from_torch(factors[f]) for f in ("down", "up")} for name, factors in modules.items()}
        try:
            lora.check(networks[component], adapter)
        except ValueError as error:
            raise ValueError(f"made for another {component}: {error}") from None
        # not before: to match somebody else's patterns takes the square of a name's length
        loras[component] = _scaled(adapter, modules, configs.get(component) or configs.get("") or _Scaling())
    return loras


def _parse(name: str, networks: Mapping[str, Params]) -> tuple[str, str, str] | None:
    """(component, module path in its network, factor) of a tensor, or None if the name is of no format."""
    plain = name.removeprefix("base_model.model.").replace(".processor.", ".")
    for pattern, module in _FORMATS:
        if match := re.fullmatch(pattern, plain):
            component, path = _component(match.expand(module), networks)
            factor = match["factor"]
            return component, path, _FACTORS.get(factor, factor)
    return None


def _component(path: str, networks: Mapping[str, Params]) -> tuple[str, str]:
    """Splits the component off `path`; where none is written, it is the network that has such a layer."""
    first, _, rest = path.partition(".")
    if first in ("text_encoder", "unet") or first in networks:
        return first, _ours(rest, networks.get(first, {}))
    for component, params in networks.items():
        if (module := _ours(path, params)) in lora.kernels(params):
            return component, module
    return next(iter(networks)), path


def _ours(path: str, params: Params) -> str:
    """`path` with or without `text_model.`, as the network has it."""
    bare = path.removeprefix(_TEXT_MODEL)
    return _TEXT_MODEL + bare if _TEXT_MODEL.removesuffix(".") in params else bare


def _published(component: str, module: str) -> str:
    return _TEXT_MODEL + module.removeprefix(_TEXT_MODEL) if component == "text_encoder" else module


def _misfits(component: str, modules: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    problems = []
    for module, factors in modules.items():
        missing = [name for name in ("down", "up") if name not in factors]
        if missing:
            problems.append(f"{component}.{module} has no {missing[0]} factor")
        elif any(factors[name].ndim < 2 or not factors[name].size for name in ("down", "up")):
            shapes = factors["down"].shape, factors["up"].shape
            problems.append(f"{component}.{module} has factors of shape {shapes[0]} and {shapes[1]}")
        elif factors.get("alpha", np.zeros(())).size != 1:
            problems.append(f"{component}.{module} has {factors['alpha'].size} alphas")
        elif factors["down"].shape[0] != factors["up"].shape[1]:
            ranks = factors["down"].shape[0], factors["up"].shape[1]
            problems.append(f"{component}.{module} has factors of rank {ranks[0]} and {ranks[1]}")
        elif any(size != 1 for name in ("down", "up") for size in factors[name].shape[2:]):
            problems.append(f"{component}.{module} is a convolution wider than 1x1")
    return problems


class _Scaling(NamedTuple):
    """What a peft `LoraConfig` says of alpha."""

    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Scaling:
        """Raises ValueError, one line: a field has another type or changes what is computed, a pattern is more than
        a name with a gap."""
        for name, supported in _ONLY.items():
            if config.get(name) not in supported:
                raise ValueError(f"its configuration: {name} = {shown(config[name])} is not supported")
        said = {name: config.get(name) for name in cls._fields}
        alpha = typed(float | None, said["lora_alpha"], "lora_alpha", "its configuration")
        patterns = typed(dict[str, float] | None, said["alpha_pattern"], "alpha_pattern", "its configuration") or {}
        for pattern in patterns:
            if not re.fullmatch(_PATTERN, pattern):  # one of somebody else's can take for ever to match
                raise ValueError(f"its configuration: alpha_pattern has {shown(pattern)}, which is no module's name")
        return cls(alpha, patterns, typed(bool | None, said["use_rslora"], "use_rslora", "its configuration") or False)


def _scaled(adapter: lora.Adapter, modules: Mapping[str, Mapping[str, np.ndarray]], config: _Scaling) -> Lora:
    """An adapter of these modules; where they differ in alpha / rank, it goes into `up` and the scale is 1."""
    scales = {module: _scale(module, factors, config) for module, factors in modules.items()}
    if len(set(scales.values())) == 1:
        return Lora(adapter, next(iter(scales.values())))
    for module, scale in scales.items():
        adapter[module]["up"] = adapter[module]["up"] * np.float32(scale)
    return Lora(adapter, 1.0)


def _scale(module: str, factors: Mapping[str, np.ndarray], config: _Scaling) -> float:
    """alpha / rank of a module: from its own tensor, else from the configuration, else 1."""
    rank = factors["down"].shape[0]
    alpha = rank if config.lora_alpha is None else config.lora_alpha
    for pattern, value in config.alpha_pattern.items():
        names = (module, module.removeprefix(_TEXT_MODEL))  # peft's `^` is for the name that transformers has for it
        if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in names):
            alpha = value
            break
    if "alpha" in factors:
        alpha = factors["alpha"].item()
    return float(alpha) / (rank**0.5 if config.use_rslora else rank)


def _peft_config(adapter: lora.Adapter, scale: float) -> dict[str, Any]:
    """peft's `LoraConfig` of an adapter, module names without `text_model.`: peft matches endings."""
    ranks = {module.removeprefix(_TEXT_MODEL): factors["down"].shape[1] for module, factors in adapter.items()}
    rank = lora.rank(adapter)
    others = {re.escape(module): other for module, other in ranks.items() if other != rank}
    return {
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": {module: scale * other for module, other in others.items()},
    }


def _to_torch(factor: Any, window: tuple[int, ...]) -> np.ndarray:
    transposed = np.asarray(factor).T
    return np.ascontiguousarray(transposed.reshape(*transposed.shape, *window))


def _from_torch(tensor: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tensor.reshape(tensor.shape[:2]).T)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file or a state dict, and the metadata of the former.

    Raises:
        ValueError, OSError: one line, where it cannot be read, or holds what configurations name as it is.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    if path.suffix in _BANKS:
        raise ValueError(f"{path} is no adapter; a bank of faces needs no conversion: name it as judges.bank")
    tensors, metadata = (read_state_dict(path), {}) if path.suffix in PICKLES else folders.read_tensors(path)
    if _LOGITS in tensors:
        raise ValueError(f"{path} is no adapter; a classifier needs no conversion: name it in judges.classifiers")
    return tensors, metadata


def save_soft_prompt(path: str | Path, soft: SoftPrompt, token: str = SOFT_TOKEN) -> None:
    """Writes soft tokens as one textual inversion of several vectors, for `load_textual_inversion`.

    diffusers expands `token` in a prompt to all of them (`<fair> <fair>_1 <fair>_2 ...`).
    """
    folders.write_tensors(Path(path), {token: np.ascontiguousarray(soft["embedding"])})


def embeddings_in(folder: Path) -> Path:
    """The file of a folder's soft tokens, which need not be there."""
    return next((path for name in (EMBEDDINGS_FILE, _OLD_EMBEDDINGS_FILE) if (path := folder / name).is_file()), folder)


def has_lora(folder: Path) -> bool:
    """Whether a folder has a file of LoRA as diffusers or peft names it."""
    return any((folder / name).is_file() for name in _LORA_FILES)


def is_soft_prompt(path: Path) -> bool:
    """Whether a file holds soft tokens, and no LoRA: one tensor, or the embedding of tokens.

    Raises:
        ValueError, OSError: one line, where it cannot be read.
    """
    names = read(path)[0]
    return len(names) == 1 or any(name.endswith(_TOKEN_EMBEDDING) for name in names)


def load_soft_prompt(path: str | Path) -> tuple[str, SoftPrompt]:
    """Reads a textual inversion: its token and its vectors, in float32.

    Of a pickle (.pt, .pth, .bin), also the prefix that the paper's authors released: the rows of its token embedding,
    of which the first is zero and stands for all other words.

    Raises:
        ValueError: in one line, if the file holds anything but one vector or one list of vectors.
        OSError: if there is no such file.
    """
    path = Path(path)
    tensors, _ = read(path)
    if path.suffix in PICKLES:
        rows = next((tensor for name, tensor in tensors.items() if name.endswith(_TOKEN_EMBEDDING)), None)
        if rows is not None:
            tensors = {SOFT_TOKEN: rows[1:] if rows.ndim == 2 and not rows[:1].any() else rows}
    if len(tensors) != 1:
        raise ValueError(f"{path}: a textual inversion holds one tensor; this file holds {len(tensors)}")
    ((token, tensor),) = tensors.items()
    if tensor.ndim not in (1, 2) or not tensor.size or tensor.dtype.kind not in "fV":
        raise ValueError(
            f"{path}: {token} is {tensor.dtype}{list(tensor.shape)}, expected floating point [tokens, width]"
        )
    return token, {"embedding": np.atleast_2d(np.asarray(tensor, np.float32))}
