"""Files that are small and would cost much are refused before they are unpacked; those that people have are read."""

import collections
import io
import pickle
import pickletools
import zipfile

import hostile_files
import numpy as np
import pytest
import torch
from hostile_files import NESTED, ROOM, archive, hashed

from fairjax.convert.pickles import read_bank, read_pickle

LEVELS = 24
"""Of tuples: hashed in a second all the same, so that a test fails that should."""


def legacy(content):
    """A pickle in a file of the kind from before PyTorch wrote zips."""
    file = io.BytesIO()
    torch.save(3, file, _use_new_zipfile_serialization=False)
    start, end = pickle.dumps(3, 2), pickle.dumps([], 2)
    assert file.getvalue().endswith(start + end)
    return file.getvalue()[: -len(start + end)] + content + end


def appended(tuple_of):
    """The same tuple twice, with an operation that leaves a tuple as it is after each, to hide that it is one."""
    return b"\x80\x02})q\0" + b"".join(b"h%c\x86%sq%c" % (i, tuple_of, i + 1) for i in range(LEVELS)) + b"K\x01s."


@pytest.mark.faults("a bomb in a pickle or a zip")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pt", hashed(LEVELS), "a tuple that is more than 1,000 things"),
        ("a.pt", archive(hashed(LEVELS)), "a tuple that is more than 1,000 things"),
        ("a.pt", legacy(hashed(LEVELS)), "a tuple that is more than 1,000 things"),
        ("a.pt", appended(b"(u"), "a tuple that is more than 1,000 things"),
        ("a.pt", appended(b"Nb"), "a tuple that is more than 1,000 things"),
        ("a.pt", hashed(3), "keys that are no text"),
        ("a.pt", b"\x80\x04\x8fK\x01\x90.", "it has sets"),
        ("a.pt", archive(NESTED), "a tuple that is more than 1,000 things"),
        ("a.pt", archive(ROOM, called="DATA.PKL"), "it would run builtins.bytearray"),
        ("a.pt", archive(ROOM), "it would run builtins.bytearray"),
        ("a.pt", archive(numbers=bytes(2**20), kind=zipfile.ZIP_DEFLATED), "compressed in a way that"),
        ("a.pt", archive(before=b"PK\x03\x04"), "something before or after"),
        ("a.pt", hostile_files.two_tables(), "something before or after"),
        ("a.npz", hostile_files.swollen(2**24), "more than 100 times as large as it is"),
    ],
)
def test_a_bomb_is_refused_and_told_what_it_is(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        (read_bank if name.endswith("npz") else read_pickle)(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def again_and_again(directory):
    """The same numbers 1,500 times, in a few bytes each: under many names, and read anew each time."""
    half = torch.zeros(2**19, dtype=torch.float16)
    torch.save({f"layer.{number}": half for number in range(1500)}, directory / "names.pth")
    (data,) = (found for _, found, _ in pickletools.genops(pickle.dumps(half)) if isinstance(found, bytes))
    function = b"\x80\x03ctorch.storage\n_load_from_bytes\nq\x000"
    text = b"X" + (100).to_bytes(4, "little") + b"a" * 100 + b"0"  # what begins with numbers is PyTorch's own
    numbers = b"B" + len(data).to_bytes(4, "little") + data + b"q\x010"
    (directory / "read.pkl").write_bytes(function + text + numbers + b"](" + b"h\x00h\x01\x85R" * 1500 + b"e.")


@pytest.mark.faults("a bomb of one tensor", count=2)
def test_one_tensor_is_not_many_times_as_many_bytes_as_a_file(tmp_path):
    again_and_again(tmp_path)
    for name, reason in (("names.pth", "the same numbers under many names"), ("read.pkl", "numbers again and again")):
        with pytest.raises(ValueError, match=reason):
            read_pickle(tmp_path / name)


NETWORK = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
NETWORK[2].bias = NETWORK[0].bias  # shared
STATES = {
    "state_dict": NETWORK.state_dict(),  # with versions, as an attribute
    "parameters": dict(NETWORK.named_parameters()),
    "numbers": {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bool), "c": torch.tensor(2.5).double()},
    "many": collections.OrderedDict((f"layer.{i}", torch.full((1, 1), i)) for i in range(500)),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_weights_of_every_kind_are_read(kind, state, tmp_path):
    path, state = tmp_path / "a.pt", STATES[state]
    if kind == "plain":
        path.write_bytes(pickle.dumps({name: tensor.detach() for name, tensor in state.items()}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    found = read_pickle(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())
