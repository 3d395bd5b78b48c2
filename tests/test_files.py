"""Files on disks that are full, logs that are damaged, folders that two programs want."""

import errno
import fcntl
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from running import full_disk
from safetensors import SafetensorError

from fairjax import files, parallel
from fairjax.convert import cards, folders
from fairjax.program import UserError

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def write_picture(path):
    with files.whole(path) as partial:
        Image.fromarray(NOISE).save(partial, "PNG")


WRITERS = {
    "a text": lambda path: files.write_text(path, "x" * 10_000),
    "tensors": lambda path: folders.write_tensors(path, {"noise": NOISE}),
    "a picture": write_picture,
    "a card": lambda path: cards.write(path.parent, {"unet": {}}, None, None, cards.Use("x", "x", "x" * 10_000)),
}


@pytest.mark.faults("a full disk, writing a file")
@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_full_disk_does_not_take_is_named_and_the_file_before_it_stays(kind, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before")
    with full_disk(2_000), pytest.raises(OSError) as refused:
        WRITERS[kind](path)
    assert refused.value.errno == errno.EFBIG and refused.value.filename == str(path)
    assert [(left.name, left.read_text()) for left in tmp_path.iterdir()] == [("README.md", "before")]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_lies_where_a_file_is_begun_is_not_written_through(kind, tmp_path):
    (tmp_path / "mine").write_text("before")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md.partial").symlink_to(tmp_path / "mine")
    WRITERS[kind](tmp_path / "run" / "README.md")
    assert (tmp_path / "mine").read_text() == "before"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["README.md"]
    assert not (tmp_path / "run" / "README.md").is_symlink()


def test_tensors_that_could_be_written_nowhere_are_our_fault(tmp_path):
    with pytest.raises(SafetensorError), files.whole(tmp_path / "x"):
        raise SafetensorError("Error while serializing: duplicate name")


DAMAGE = {
    "a line that is no object": b"5\n",
    "no UTF-8": b"\xff\xfe\x00\n",
    "an object without a step": b"{}\n",
    "a step that is no number": b'{"step": "1"}\n',
    "half a line": b'{"step": 2, "lo\n',
    "very deep": b"[" * 100_000 + b"\n",
    "infinity": b'{"step": 2, "seconds": Infinity}\n',
    "no number": b'{"step": 2, "loss": NaN}\n',
    "more than a float": b'{"step": 2, "loss": 1e999}\n',
    "an integer of 400 digits": b'{"step": 1' + b"0" * 400 + b"}\n",
}


@pytest.mark.faults("a log that is damaged", count=len(DAMAGE), lost="the damaged lines")
def test_of_a_damaged_log_the_lines_before_and_after_are_read(tmp_path):
    path = tmp_path / "log.jsonl"
    first, last = b'{"step": 1}\n', b'{"step": 2}'
    for kind, line in DAMAGE.items():
        path.write_bytes(first + line + last)
        assert files.json_lines(path, step=int) == [{"step": 1}, {"step": 2}], kind
    path.write_bytes(first + json.dumps({"step": 2, "distance": None}).encode())
    assert files.json_lines(path, step=int, distance=float | None) == [{"step": 2, "distance": None}]
    assert files.json_lines(tmp_path / "nothing") == []


def test_a_folder_is_one_programs_at_a_time(tmp_path):
    with parallel.alone(tmp_path / "run"):
        with pytest.raises(UserError, match=r"^output = '.*run': another program is at work in it$"):
            with parallel.alone(tmp_path / "run"):
                pass
        with parallel.alone(tmp_path / "other"):
            pass
    with parallel.alone(tmp_path / "run"):
        pass


@pytest.mark.faults("a program killed in a folder that it had to itself")
def test_a_program_that_is_killed_leaves_its_folder_to_the_next(tmp_path):
    code = "import sys, time\nfrom fairjax import parallel\nfrom pathlib import Path\n"
    code += "with parallel.alone(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with pytest.raises(UserError, match="another program is at work"), parallel.alone(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with parallel.alone(tmp_path):
        pass


def test_where_a_file_system_has_no_locks_a_program_goes_on(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with parallel.alone(tmp_path), parallel.alone(tmp_path):
        pass


def test_another_host_leaves_the_folder_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "is_first", lambda: False)
    with parallel.alone(tmp_path / "run"), parallel.alone(tmp_path / "run"):
        assert not (tmp_path / "run").exists()
