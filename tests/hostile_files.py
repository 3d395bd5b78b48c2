"""Files that are malformed, and known to be: model folders, adapters, weights, pickles with code, prompts.

Each function takes `draw`, an empty folder and a small world, and leaves what is malformed in the folder. It returns
the program to run on it, its arguments, and what its one line must name.
"""

import dataclasses
import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file
from small_world import WIDTH, arguments

import eval as eval_program
import train as train_program
from fairjax import generate
from fairjax.convert import __main__ as convert
from fairjax.convert.adapters import EMBEDDINGS_FILE, LORA_FILE
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.models.clip import CLIPTextConfig
from fairjax.models.unet import UNetConfig
from fairjax.models.vae import VAEConfig

CANARY = "canary"
_DESCRIBED = {
    "text_encoder/config.json": CLIPTextConfig, "unet/config.json": UNetConfig, "vae/config.json": VAEConfig,
    "scheduler/scheduler_config.json": NoiseSchedule,
}  # fmt: skip
_WEIGHTS = ("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
            "vae/diffusion_pytorch_model.safetensors")  # fmt: skip
_NOT_THESE = {  # by how the type of a field begins
    "int": ["abc", 1.5, True, -1, 10**12, 10**30, float("nan"), {}, [[1]], [-1] * 3, [1] * 20],
    "float": ["abc", True, -1.0, float("inf"), float("nan"), [], {}],
    "str": ["zzz", 3, True, ["silu"], {}, float("nan")],
    "bool": ["yes", 3, [], {}, None],
    "tuple": [3, "abc", {}, ["zzz"], [-1], [[1]], [], [0], [10**12] * 40, None],
}
WRONG_FIELDS = [
    (file, field.name, value)
    for file, config in _DESCRIBED.items()
    for field in dataclasses.fields(config)
    for value in _NOT_THESE[field.type.partition(" ")[0].partition("[")[0]]
]
"""Each field of a model's folder and what it cannot be: the file, its name, the value."""
_DEEP = "[" * 100_000
_BROKEN = ["", "[]", "null", "3", '"a"', "{", _DEEP, '{"a":' * 100_000, b"\xff\xfe{", "9" * 10_000, "\0"]


def _write(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


_NO_FILES = ("folder", "nowhere", "loop", "pipe", "device", "missing")


def _instead(draw, path, kinds=("text", "cut", *_NO_FILES)):
    """Puts something else where a file should be."""
    what = draw(st.sampled_from(kinds))
    whole = path.read_bytes()
    path.unlink()
    match what:
        case "text":
            _write(path, draw(st.sampled_from(_BROKEN)))
        case "cut":
            _write(path, whole[: draw(st.integers(0, min(len(whole), 10_000) - 3))])
        case "folder":
            path.mkdir()
        case "nowhere":
            path.symlink_to("/nowhere/at/all")
        case "loop":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")


class Code:
    """What a pickle runs when it is read carelessly."""

    def __init__(self, folder):
        self.command = f"touch {folder.parent / CANARY}"

    def __reduce__(self):
        return os.system, (self.command,)


def _torch(content, **how):
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def _laughs():
    laughs = ["lol"]
    for _ in range(40):
        laughs = [laughs] * 10
    return laughs


def _strided():
    """A tensor of a trillion numbers, all of them the same two bytes."""
    return _torch({"a.weight": torch.as_strided(torch.zeros(1).half(), (10**6, 10**6), (0, 0))})


_NUMBERED = b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b"."  # LONG_BINPUT: an object of that number


def hashed(levels):
    """A dict whose key is a tuple of the same tuple twice, of the same tuple twice, and so on."""
    twice = b"".join(b"h%c\x86q%c" % (level, level + 1) for level in range(levels))
    return b"\x80\x02})q\0" + twice + b"K\x01s."


NESTED = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."
"""A dict whose key is a tuple in a tuple in a tuple, deeper than what hashes it can go."""

ROOM = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."
"""A trillion bytes, as PyTorch's own unpickler would make room for."""


def archive(pickled=None, numbers=bytes(16), kind=zipfile.ZIP_STORED, before=b"", called="data.pkl"):
    """What `torch.save` writes of four numbers, with another pickle in it, of other numbers, packed in another way."""
    file, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(_torch({"a.lora_A.weight": torch.zeros(4)})))
    file.write(before)
    with zipfile.ZipFile(file, "a" if before else "w", kind) as packed:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = pickled or content.replace(b"K\x04", b"J" + struct.pack("<i", len(numbers) // 4))
            packed.writestr(name.replace("data.pkl", called), numbers if name.endswith("data/0") else content)
    return file.getvalue()


def two_tables():
    """A zip in two ways: `zipfile` finds the second table of contents, what reads it for PyTorch the first."""
    first, second = archive(numbers=bytes(2**20), kind=zipfile.ZIP_DEFLATED), archive(numbers=bytes(2**20))
    return first[:-22] + second[:-6] + first[-6:]  # where the second ends it says where the first one's table is


def swollen(size):
    """A `.npz` of so many zeros."""
    file = io.BytesIO()
    np.savez_compressed(file, embeddings=np.zeros((size // 400, 100), np.float32))
    return file.getvalue()


def _pickled(draw, path):
    """A pickle with code, one that is cut short, or one that is more than it seems."""
    whole = _torch({"a": torch.zeros(64)})
    _write(path, draw(st.sampled_from([
        pickle.dumps({"a": Code(path)}), pickle.dumps(Code(path), 0), _torch({"a": torch.zeros(1), "b": Code(path)}),
        _torch([Code(path)], _use_new_zipfile_serialization=False), whole[: draw(st.integers(1, len(whole) - 40))],
        _strided(), _NUMBERED, _torch({"a": _laughs()}), pickle.dumps(_laughs()), b"", b"\x80\x04", b"PK\x03\x04",
        b"\x80\x02X\xff\xff\xff\x7fabc.", b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        pickle.dumps({"a": [1]}), pickle.dumps(3), hashed(45), archive(hashed(45)), NESTED, archive(NESTED),
        archive(ROOM),
    ])))  # fmt: skip


def _safetensors(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _damaged(draw, path):
    """Weights whose header or whose numbers are not those of the network."""
    tensors, whole = load_file(path), path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = draw(st.sampled_from(sorted(tensors)))
    tensor, entry = tensors[name], header[name]
    kind = draw(st.sampled_from(["I32", "U32", "BOOL", "C64", "F8_E4M3", "F4", "F64", "X", "I64", 3, None]))
    size = draw(st.sampled_from([0, 1, 7, 10**8, 10**8 + 1, 2**31, 2**62, 2**64 - 1]))
    shape = draw(st.sampled_from([[], [0], [2**40, 2**40], [-1], [2**64], [tensor.size + 1], [1.5], "abc", {}]))
    places = draw(st.sampled_from([[0, 2**63], [10, 0], [-4, 4], [0], [len(data) - 1, len(data) + 3], None]))
    others = {key: value for key, value in tensors.items() if key != name}
    changes = draw(
        st.sampled_from(["size", "kind", "shape", "places", "deep", "less", "more", "turned", "whole", "cut"])
    )
    _write(path, {
        "size": struct.pack("<Q", size) + whole[8 : 8 + draw(st.integers(0, 3)) * 100],
        "kind": _safetensors(header | {name: entry | {"dtype": kind}}, data),
        "shape": _safetensors(header | {name: entry | {"shape": shape}}, data),
        "places": _safetensors(header | {name: entry | {"data_offsets": places}}, data),
        "deep": _safetensors(b'{"a":' * 50_000, data),
        "less": save(others), "more": save(tensors | {"one.more": np.zeros(3, np.float32)}),
        "turned": save(others | {name: np.zeros((*tensor.shape, 2), np.float32)}),
        "whole": save({key: value.astype(np.int32) for key, value in tensors.items()}),
        "cut": whole[: draw(st.integers(0, len(whole) - 1))],
    }[changes])  # fmt: skip


def of_a_model(folder, world):
    """Copies a model into `folder/model`, and returns the arguments that draw with it."""
    for part in ("text_encoder", "unet", "vae", "tokenizer", "scheduler"):
        shutil.copytree(world / part, folder / "model" / part)
    return ["a chef", "--num", 1, "--steps", 1, "--model", folder / "model", "--output", folder / "out"]


def change_field(path, name, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def model(draw, folder, world):
    """A model's folder with one thing wrong in it."""
    argv = of_a_model(folder, world)
    folder, names = folder / "model", ""
    match draw(
        st.sampled_from(["field", "field", "json", "weights", "weights", "instead", "index", "pickle", "words"])
    ):
        case "field":
            file, names, value = draw(st.sampled_from(WRONG_FIELDS))
            change_field(folder / file, names, value)
        case "json":
            file = draw(st.sampled_from(sorted(_DESCRIBED)))
            names = folder / file
            _instead(draw, folder / file)
        case "weights":
            file = draw(st.sampled_from(_WEIGHTS))
            names = (folder / file).parent
            _damaged(draw, folder / file)
        case "instead":
            file = draw(st.sampled_from(_WEIGHTS))
            names = (folder / file).parent
            _instead(draw, folder / file)
        case "index":
            shutil.move(folder / _WEIGHTS[1], folder.parent / "outside.safetensors")
            names = folder / "unet"
            index = folder / f"{_WEIGHTS[1]}.index.json"
            elsewhere = folder.parent / "outside.safetensors"
            outside = [f"../../{folder.parent.name}/{elsewhere.name}", str(elsewhere), "..", "/dev/zero", "", ".",
                       "a\0b", "none.safetensors", 3, None, {}, ["a"]]  # fmt: skip
            shards = draw(st.sampled_from([{"a": name} for name in outside] + [None, [], 3, "abc", {}]))
            _write(index, draw(st.sampled_from([json.dumps({"weight_map": shards}), "{}", "[]", _DEEP])))
        case "pickle":
            (folder / _WEIGHTS[1]).unlink()
            names = "is a pickle"
            _write(folder / "unet" / "diffusion_pytorch_model.bin", pickle.dumps(Code(folder)))
        case "words":
            names = folder / "tokenizer"
            if draw(st.booleans()):
                said = json.loads((names / "tokenizer_config.json").read_text())
                value = draw(st.sampled_from([10**9, 10**30, 0, -1, 1, "abc", [], {}, float("nan"), float("inf")]))
                _write(names / "tokenizer_config.json", json.dumps(said | {"model_max_length": value}))
            else:
                (names / "tokenizer.json").unlink()  # which is read before the others
                words = {"<|startoftext|>": 10**9}, {"a": "b"}, {"a": -1}, [1], 3, {"a": 2**70}, {}
                file = draw(st.sampled_from(["vocab.json", "tokenizer.json"]))
                _write(names / file, draw(st.sampled_from([*map(json.dumps, words), *_BROKEN])))
    return generate, argv, names


_MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"


def adapter(draw, folder, world):
    """A LoRA, a soft prompt or a pickle that is none, or was made for nothing that there is."""
    folder = folder / "adapter"
    folder.mkdir()
    down, up = np.zeros((2, 8), np.float32), np.zeros((8, 2), np.float32)
    good = {f"{_MODULE}.lora_A.weight": down, f"{_MODULE}.lora_B.weight": up}
    file, source = folder / LORA_FILE, folder
    match draw(st.sampled_from(["file", "instead", "shape", "config", "soft", "pickle", "pickle", "empty", "name"])):
        case "file":
            save_file(good, file)
            _damaged(draw, file)
        case "instead":
            save_file(good, file)
            _instead(draw, file)
        case "shape":
            which = draw(st.sampled_from(sorted(good)))
            shape = draw(st.sampled_from([(), (0,), (8,), (0, 8), (3, 8), (8, 3), (1, 1, 1), (2, 8, 3, 3), (2, 9)]))
            kind = draw(st.sampled_from([np.float32, np.float16, np.int32, bool, np.complex64]))
            save_file(good | {which: np.zeros(shape, kind)}, file)
        case "config":
            odd = ({"lora_alpha": value} for value in ("abc", [], {}, True, 1e999, -1))
            patterns = (
                {"alpha_pattern": {name: 1}} for name in ("(a+)+$", "(", "[", "(.*a){30}", ".*.*.*.*.*.*c", "a|b")
            )
            others = ({"alpha_pattern": "abc"}, {"alpha_pattern": {"a": "b"}}, {"use_rslora": "no"})
            said = draw(st.sampled_from([*odd, *patterns, *others, *_BROKEN]))
            if draw(st.booleans()):
                save_file(good, folder / "adapter_model.safetensors")
                _write(folder / "adapter_config.json", json.dumps(said) if isinstance(said, dict) else said)
            else:
                flat = {f"unet.{key}": value for key, value in said.items()} if isinstance(said, dict) else [1]
                save_file(good, file, {"lora_adapter_metadata": json.dumps(flat)})
        case "soft":
            shape = draw(st.sampled_from([(), (0,), (3,), (2, WIDTH + 1), (2, 2, WIDTH), (0, WIDTH), (90, WIDTH)]))
            save_file({"<fair>": np.zeros(shape, np.float32)}, folder / EMBEDDINGS_FILE)
        case "pickle":
            source = folder / draw(st.sampled_from(["a.pt", "a.pth"]))
            _pickled(draw, source)
        case "empty":
            source = folder / draw(st.sampled_from(["", ".", "none.safetensors"]))
        case "name":
            name = draw(st.text(max_size=30)) + draw(
                st.sampled_from(["", ".lora_A.weight", ".alpha", "..", ".lora.up.weight"])
            )
            save_file({name.encode(errors="replace").decode(): down, "b": up}, file)
    out = folder.parent / "out"
    return draw(st.sampled_from([
        (convert, [source, "--model", world, "--output", out], folder),
        (generate, ["a", "--model", world, "--adapter", source, "--output", out], folder),
        (eval_program, ["--adapter", source, "--output", out, *arguments(world)], folder),
    ]))  # fmt: skip


def _promised():
    """A `.npy` that says it has a trillion numbers, and has none."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    return file.getvalue()


def judge(draw, folder, world):
    """A classifier or a bank of faces that is none."""
    objects, short, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([Code(folder)], object), allow_pickle=True)
    np.savez(archive, embeddings=np.zeros((3, 2), np.float32))
    with zipfile.ZipFile(short, "w") as file:
        file.writestr("embeddings.npy", _promised())
    cut = archive.getvalue()[: draw(st.integers(0, len(archive.getvalue()) - 1))]
    field, path = "classifiers", folder / "classifier"
    match draw(st.sampled_from(["bank", "bank", "pickle", "classifier", "weights"])):
        case "bank":
            field, path = (
                "bank",
                folder / draw(st.sampled_from(["bank.npy", "bank.npz", "bank.safetensors", "bank.csv"])),
            )
            _write(path, draw(st.sampled_from([_promised(), objects.getvalue(), short.getvalue(), cut, b"",
                                               save({"embeddings": np.zeros((2, 2), np.int32)})])))  # fmt: skip
        case "pickle":
            field = draw(st.sampled_from(["bank", "face", "classifiers"]))
            path = folder / {"bank": "a.pkl", "face": "a.pth", "classifiers": "a.pt"}[field]
            _pickled(draw, path)
        case "classifier":
            shutil.copytree(world / "classifier", path)
            said = json.loads((path / "config.json").read_text())
            key = draw(st.sampled_from(["rows", "heads", "stem", "last_channels", "num_classes", "image_size"]))
            wrong = ["abc", -1, 1.5, [[1]], {"a": 3}, None, True, [], {}, 10**30, [[3, 16, 16, 1, 1, "a"]]]
            less = {name: value for name, value in said.items() if name != key}
            changed = draw(
                st.sampled_from([json.dumps(less | {key: value}) for value in wrong] + [json.dumps(less), *_BROKEN])
            )
            _write(path / "config.json", changed)
        case "weights":
            shutil.copytree(world / "classifier", path)
            draw(st.sampled_from([_damaged, _instead]))(draw, path / "model.safetensors")
    given = path if field in ("bank", "face") else json.dumps([str(path)])
    return train_program, [*arguments(world), "--dry-run", f"--judges.{field}", given, "--output", folder / "out"], path


def prompts(draw, folder, world):
    """A file of prompts, or a table of targets, that cannot be followed."""
    end = draw(st.sampled_from([".csv", ".json", ".jsonl", ".parquet", ".txt"]))
    path = folder / f"a{end}"
    table = io.BytesIO()
    column = draw(
        st.sampled_from([[1, 2], [None, None], [["a"], ["b"]], [b"a", b"b"], [{"a": 1}, {"a": 2}], [" ", ""]])
    )
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), table)
    cut = table.getvalue()[: draw(st.integers(0, len(table.getvalue()) - 1))]
    texts = {
        ".csv": ["", "\n\n", "a,b\nc,d\n", "a\n,,,\n", 'a\n"b', "a\n1\n2\n", "\0\0\0", b"\xff\xfe\n", "a\n \n"],
        ".json": ["", "3", "null", " \n null", '"a"', "{", _DEEP, '{"a":' * 100_000, "[1]", '[{"a": 1}]', b"\xff"],
        ".jsonl": ["", "{\n", '{"a": 1}\n', '{"a": {"b": [1]}}\n', _DEEP, '{"a": "b"}\n{"c": 3}\n', b"\xff", "[1]"],
        ".parquet": [table.getvalue(), cut, b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1"],
        ".txt": ["", "\n", "a\n\nb\n", " \n", b"\xff\xfe\xfd\n"],
    }[end]  # fmt: skip
    _write(path, draw(st.sampled_from(texts)))
    if draw(st.integers(0, 4)) == 0:
        _instead(draw, path, _NO_FILES)
    if end != ".txt" and draw(st.booleans()):
        asked = ["--target.table", path]
    else:
        asked = ["--prompts.sources", json.dumps([{"name": str(path)}])]
    return train_program, [*arguments(world), "--dry-run", *asked, "--output", folder / "out"], path


KINDS = (model, adapter, judge, prompts)

BOMBS = (
    ("a.safetensors", struct.pack("<Q", 2**62)),
    ("b.safetensors", _safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"")),
    ("c.safetensors", _safetensors(b'{"a":' * 10**6, b"")),
    ("a.pt", _NUMBERED),
    ("b.pt", _strided()),
    ("c.pt", _torch({"a": _laughs()})),
    ("d.pt", lambda path: pickle.dumps(Code(path))),
    ("e.pt", hashed(45)),
    ("f.pt", archive(hashed(45))),
    ("g.pt", NESTED),
    ("h.pt", archive(ROOM)),
    ("i.pt", lambda path: archive(numbers=bytes(2**30), kind=zipfile.ZIP_DEFLATED)),
    ("bank.npy", _promised()),
    ("bank.npz", lambda path: swollen(2**29)),
)
"""Files that are small and say that they are huge or never end, and one with code, by their names."""
