"""Pickles and zips that would run something, or are small and would cost much: told before anything is unpacked."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Container
from typing import BinaryIO

KNOWN = re.compile(
    r"collections\.OrderedDict|torch\.storage\._load_from_bytes|torch(\.cuda)?\.\w+Storage"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
)
"""What a pickle of weights names. PyTorch's unpickler takes more for safe: `bytearray`, of any size."""

_LARGEST_TUPLE = 1_000

_NEVER = ("DUP", "DICT", "EMPTY_SET", "FROZENSET", "ADDITEMS")
"""What no pickle of weights has."""

_IN_PLACE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")


class Refused(ValueError):
    """Says of a file what it would do."""


def check_pickle(file: BinaryIO) -> None:
    """Goes through one pickle without building any of it, and leaves the file behind its end.

    Python hashes a tuple by hashing what is in it, each time: a tuple that has the same tuple twice, which has the same
    tuple twice, and so on, is a few bytes and never hashed to the end. So a tuple is as large as all that is in it,
    counted as often as it is there, and only text is a key.

    Raises:
        Refused: where it names what is not `KNOWN`, or hides more than a state dict would.
        ValueError, LookupError: where it is no pickle.
    """
    stack, memo = [], {}  # of each thing its size: 0 for text, None for a mark
    for opcode, argument, _ in pickletools.genops(file):
        before, name = opcode.stack_before, opcode.name
        if name in ("GLOBAL", "INST") and not KNOWN.fullmatch(found := argument.replace(" ", ".")):
            raise Refused(f"it would run {found}")
        if name.endswith("GET"):
            stack.append(memo[argument])
        elif name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        else:
            taken = []
            if pickletools.markobject in before:
                while (size := stack.pop()) is not None:
                    taken.append(size)
                before = before[: before.index(pickletools.markobject)]
            taken += [stack.pop() for _ in before]
            if name in _NEVER or name.startswith("SETITEM") and any(taken[1:-1:2]):
                raise Refused("it has sets, or keys that are no text")
            stack += [_size(opcode, taken) for _ in opcode.stack_after]


def _size(opcode: pickletools.OpcodeInfo, taken: list[int]) -> int | None:
    """Of what an operation puts on the stack in place of what it takes."""
    (after,) = opcode.stack_after
    if after is pickletools.markobject:
        return None
    if after is pickletools.pytuple:
        size = 1 + sum(max(size, 1) for size in taken)
        if size > _LARGEST_TUPLE:
            raise Refused(f"it has a tuple that is more than {_LARGEST_TUPLE:,} things")
        return size
    if opcode.name in _IN_PLACE:
        return taken[-1]
    return 0 if after in (pickletools.pyunicode, pickletools.pybytes_or_str) else 1


def check_zip(file: BinaryIO, kinds: Container[int], factor: int) -> zipfile.ZipFile:
    """Opens a zip whose files are no more than `factor` times as many bytes as it has.

    Args:
        kinds: how they may be packed, such as `zipfile.ZIP_STORED`.

    Raises:
        Refused, BadZipFile: where they are more, or packed in another way; where it is no zip.
    """
    size = file.seek(0, 2)
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    if any(entry.compress_type not in kinds for entry in entries):
        raise Refused("it is compressed in a way that such files are not")
    if sum(entry.file_size for entry in entries) > factor * size:
        raise Refused(f"what is in it would be more than {factor} times as large as it is")
    # Else it might have two tables of contents, of which PyTorch reads the other.
    if archive.comment or min(entry.header_offset for entry in entries):
        raise Refused("there is something before or after what is in it")
    return archive
