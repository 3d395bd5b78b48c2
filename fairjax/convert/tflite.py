"""The weights in a TensorFlow Lite file, read from its bytes: no TensorFlow is needed, and nothing of it is run.

A .tflite file is a FlatBuffer: tables that point to tables. Of TensorFlow's schema (`schema.fbs`) five fields matter:
a model has `subgraphs` and `buffers`; a subgraph has `tensors`; a tensor has a shape, a type, a buffer and a name.
Every position is checked before it is read, so that a damaged file is an error and no more; and tables that are pointed
to again and again are read until it is a few times as much as the file has.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_IDENTIFIER = b"TFL3"
_SUBGRAPHS, _BUFFERS = 2, 4  # fields of a model
_TENSORS = 0  # of a subgraph
_SHAPE, _TYPE, _BUFFER, _NAME = range(4)  # of a tensor
_DATA = 0  # of a buffer
_GROWTH = 8
"""How many times as many bytes as a file are read: tensors may share their numbers, in a few bytes each."""
_MOST_AXES = 8
_FLOATS = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


class _Damaged(ValueError):
    """The file says something impossible."""


class _File:
    """A FlatBuffer; positions are in bytes from its start."""

    def __init__(self, content: bytes):
        self.content, self.left = content, _GROWTH * len(content)

    def number(self, kind: str, position: int) -> int:
        """A little-endian number of the `struct` format `kind`."""
        if not 0 <= position <= len(self.content) - struct.calcsize(kind):
            raise _Damaged(f"byte {position} of {len(self.content)} is pointed to")
        return struct.unpack_from(f"<{kind}", self.content, position)[0]

    def follow(self, position: int) -> int:
        return position + self.number("I", position)

    def field(self, table: int, number: int) -> int | None:
        """Where the table has its field of this number; None where it has its default."""
        layout = table - self.number("i", table)
        slot = 4 + 2 * number
        offset = self.number("H", layout + slot) if slot < self.number("H", layout) else 0
        return table + offset if offset else None

    def vector(self, table: int, number: int, item: int) -> tuple[int, int]:
        """The start and the length of a vector of items of so many bytes."""
        field = self.field(table, number)
        if field is None:
            return 0, 0
        start = self.follow(field)
        length = self.number("I", start)
        if start + 4 + length * item > len(self.content):
            raise _Damaged(f"{length} items at byte {start} do not fit into {len(self.content)} bytes")
        self.left -= length * item
        if self.left < 0:
            raise _Damaged("it has the same tables or numbers again and again")
        return start + 4, length

    def tables(self, table: int, number: int) -> list[int]:
        start, length = self.vector(table, number, 4)
        return [self.follow(start + 4 * place) for place in range(length)]

    def bytes(self, table: int, number: int) -> bytes:
        start, length = self.vector(table, number, 1)
        return self.content[start : start + length]


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Its float tensors by name, as float32 and in TensorFlow's layouts: convolutions are [out, h, w, in].

    Raises:
        FileNotFoundError, ValueError: one line naming the file; where it is cut short or no TensorFlow Lite file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    content = path.read_bytes()
    if content[4:8] != _IDENTIFIER:
        raise ValueError(f"{path} is no TensorFlow Lite file: it should have TFL3 in its bytes 4 to 8")
    try:
        return _float_tensors(_File(content))
    except (_Damaged, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole TensorFlow Lite file: {error}") from None


def _float_tensors(file: _File) -> dict[str, np.ndarray]:
    model = file.follow(0)
    buffers = file.tables(model, _BUFFERS)
    weights = {}
    for subgraph in file.tables(model, _SUBGRAPHS):
        for tensor in file.tables(subgraph, _TENSORS):
            kind, buffer = file.field(tensor, _TYPE), file.field(tensor, _BUFFER)
            dtype = _FLOATS.get(file.number("b", kind) if kind else 0)
            place = file.number("I", buffer) if buffer else 0
            if place >= len(buffers):
                raise _Damaged(f"there is no buffer {place}")
            data = file.bytes(buffers[place], _DATA)
            if dtype is None or not data:  # not a weight: an integer, or what is computed
                continue
            start, length = file.vector(tensor, _SHAPE, 4)
            if length > _MOST_AXES:
                raise _Damaged(f"a tensor has {length} axes")
            shape = [file.number("i", start + 4 * axis) for axis in range(length)]
            name = file.bytes(tensor, _NAME).decode()
            if min(shape, default=0) < 0 or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(data):
                raise _Damaged(f"{name} of shape {tuple(shape)} has {len(data)} bytes")
            weights[name] = np.frombuffer(data, dtype).reshape(shape).astype(np.float32)
    return weights


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The weights of a Keras network by the names and in the layouts that PyTorch would have them in.

    `conv2d/Kernel` [out, h, w, in] becomes `conv2d.weight` [out, in, h, w]; of a depthwise one, [1, h, w, c] becomes
    [c, 1, h, w].

    Raises:
        FileNotFoundError, ValueError: as `read_weights`.
    """
    tensors = {}
    for name, tensor in read_weights(path).items():
        layer, _, kind = name.rpartition("/")
        if kind == "Kernel" and tensor.ndim == 4:
            tensor = tensor.transpose((3, 0, 1, 2) if layer.startswith("depthwise") else (0, 3, 1, 2))
        tensors[f"{layer}.{'weight' if kind == 'Kernel' else kind.lower()}"] = tensor
    return tensors
