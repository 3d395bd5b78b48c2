"""Files of `torch.save` (.pt, .pth), read without running what is in them, and banks of face embeddings.

A pickle can execute code, and a few bytes of one can take forever. It is gone through first (`bombs`), and then read by
PyTorch's weights-only unpickler alone, which builds tensors, numbers, strings and containers of them, and refuses
everything else before it does anything. Plain pickles of tensors, such as the authors' bank, are read by an unpickler
that knows the two functions by which PyTorch pickles a tensor; in place of the second it has the weights-only one.
"""

from __future__ import annotations

import collections
import io
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fairjax.convert import bombs, folders

EMBEDDINGS = "embeddings"


def read_pickle(path: Path) -> Any:
    """What `torch.save` or `pickle.dump` wrote, with numpy arrays for tensors (float32 for those of fewer bits).

    Raises:
        FileNotFoundError, ImportError, ValueError: one line naming the file; without PyTorch; where the file is
            no such file, or holds more than weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        import torch
    except ImportError:
        raise ImportError(f"{path} is a pickle, which PyTorch reads: pip install torch") from None
    try:
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file:  # that others might not be read
            content = (_read_plain if _is_plain(file) else _weights_only)(file, torch)
            return _arrays(content, torch, _GROWTH * path.stat().st_size)
    except Exception as error:  # a crafted file can make the unpickler raise anything
        reason = error if isinstance(error, bombs.Refused) else "it is damaged, or holds no tensors"
        raise ValueError(
            f"{path} was not read: {reason}; of pickles, which can execute code, weights alone are: save safetensors"
        ) from None


def _weights_only(file: BinaryIO, torch: Any) -> Any:
    if file.read(4) == b"PK\x03\x04":
        archive = bombs.check_zip(file, (zipfile.ZIP_STORED,), 1)
        for entry in archive.infolist():
            if entry.filename.lower().endswith(".pkl"):  # PyTorch finds it in whatever letters
                bombs.check_pickle(io.BytesIO(archive.read(entry)))
    else:
        file.seek(0)
        for _ in range(_PICKLES):
            bombs.check_pickle(file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


_GROWTH = 8
"""How many times as many bytes as a file the arrays may be: of 16 bits become 32, and networks share some weights."""

_PICKLES = 5
"""In a file from before PyTorch wrote zips: two numbers, the machine, what was saved, the names of its storages."""


def _is_plain(file: BinaryIO) -> bool:
    """Whether it is a pickle that `torch.save` did not write: it writes zips, and once began with a number."""
    start = file.read(64)
    file.seek(0)
    return start[:1] == b"\x80" and _TORCH_MAGIC not in start


_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


def _read_plain(file: BinaryIO, torch: Any) -> Any:
    left = file.seek(0, io.SEEK_END)

    def storage(data: bytes) -> Any:
        nonlocal left
        left -= len(data)  # which a few bytes can ask for again and again
        if left < 0:
            raise bombs.Refused("it has the same numbers again and again")
        if not torch.is_storage(found := _weights_only(io.BytesIO(data), torch)):
            raise ValueError("something else in the place of a tensor's numbers")
        return found

    known = {
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): storage,
        ("collections", "OrderedDict"): collections.OrderedDict,
    }

    class Unpickler(pickle._Unpickler):  # the one in C makes room for as many objects as a file claims to number
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in known:
                raise bombs.Refused(f"it would run {module}.{name}")
            return known[module, name]

    file.seek(0)
    bombs.check_pickle(file)
    file.seek(0)
    return Unpickler(file).load()


def _arrays(content: Any, torch: Any, most: int) -> Any:
    """Arrays for tensors, and for those in a container; what lies deeper, a few bytes can repeat without end.

    Raises:
        Refused: where they would be more than `most` bytes, since names of one tensor take no room in a file.
    """
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    if sum(4 * value.numel() for value in values if isinstance(value, torch.Tensor)) > most:
        raise bombs.Refused("it has the same numbers under many names")
    if isinstance(content, dict):
        return {name: _array(value, torch) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_array(value, torch) for value in content]
    return _array(content, torch)


def _array(value: Any, torch: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError("a tensor of more numbers than the file has")
    return (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value).detach().numpy()


def read_state_dict(path: Path, prefix: str = "module.") -> dict[str, np.ndarray]:
    """A network's tensors by name, without the `prefix` that `DataParallel` puts before every one.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `read_pickle`, and where the file is no state dict.
    """
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(tensor, np.ndarray) for tensor in content.values()):
        raise ValueError(f"{path} holds no state dict, names and their tensors: save `network.state_dict()`")
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def read_bank(path: Path, attributes: Sequence[str] = ("gender", "race")) -> dict[str, np.ndarray]:
    """Embeddings of real faces: "embeddings" [M, d] float32, and by the name of an attribute their classes [M] int32.

    Args:
        path: `.npy`, the embeddings alone; `.npz` or `.safetensors`, by name; `.pkl`, `.pt` or `.pth`, the authors'
            tuple: embeddings, then for each attribute its classes and their logits, which are left out.
        attributes: what the tuple's classes are of, in its order; a tuple may have fewer.

    Raises:
        FileNotFoundError, ImportError, ValueError: one line naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    found = _read_bank(path, attributes)
    for name, value in found.items():
        if isinstance(value, list) and all(type(item) is int for item in value):
            found[name] = value = np.array(value)
        kinds = "f" if name == EMBEDDINGS else "iu"
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            raise ValueError(f"{path}: {name} should be an array of {'floats' if kinds == 'f' else 'integers'}")
    bank = {name: np.asarray(value, np.float32 if name == EMBEDDINGS else np.int32) for name, value in found.items()}
    shapes = {name: value.shape for name, value in bank.items()}
    faces = bank.get(EMBEDDINGS, np.zeros(0))
    if faces.ndim != 2 or any(shape != faces.shape[:1] for name, shape in shapes.items() if name != EMBEDDINGS):
        raise ValueError(f"{path} has {shapes}: it should have embeddings [M, d], and classes [M] of attributes")
    return bank


_NPZ_FACTOR = 100
"""How many times as large as a `.npz` what is in it may be: embeddings hardly shrink, classes a good deal."""


def _read_numpy(path: Path) -> dict[str, Any]:
    try:  # .npy in place, so that there are as many numbers as it says
        if path.suffix == ".npz":
            with path.open("rb") as file:
                bombs.check_zip(file, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), _NPZ_FACTOR)
        content = np.load(path, "r" if path.suffix == ".npy" else None, allow_pickle=False)
        return {EMBEDDINGS: content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # a crafted file can make what unpacks it raise anything
        raise ValueError(f"{path} is no bank of faces: {error}") from None


def _read_bank(path: Path, attributes: Sequence[str]) -> dict[str, Any]:
    match path.suffix:
        case ".npy" | ".npz":
            return _read_numpy(path)
        case ".safetensors":
            return folders.read_tensors(path)[0]
        case ".pkl" | ".pt" | ".pth":
            content = read_pickle(path)
            if isinstance(content, dict):
                return content
            if isinstance(content, list | tuple) and len(content) % 2 == 1:
                embeddings, *rest = content
                return {EMBEDDINGS: embeddings, **dict(zip(attributes, rest[::2], strict=False))}
            return {EMBEDDINGS: content}
    raise ValueError(f"{path}: a bank of faces is .npy, .npz, .safetensors, .pkl, .pt or .pth")
