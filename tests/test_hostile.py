"""Hostile input at the command line: one clear line and exit code 2; nothing is run, nothing written or left behind.

The programs' own `main` is called here, which takes milliseconds where a process takes seconds; some are started for
real, with little memory. `pytest -m faults` throws more.
"""

import contextlib
import itertools
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hostile_files
import pytest
from hostile import CONFIGS, LAUGHS, TAGS, WRONG_VALUES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eval as eval_program
import train as train_program
from fairjax import generate, parallel
from fairjax.convert import bundles
from fairjax.evaluation import run as evaluation
from fairjax.pipeline import Pipeline
from fairjax.training import plan

ROOT = Path(__file__).parent.parent
SECONDS, MEMORY = 20, 16 * 2**30  # jax and PyTorch reserve most of that, and use little
pytestmark = pytest.mark.usefixtures("read_once")  # what the malformed is beside


def thrown(count):
    """Examples drawn alike in every run of the same code: Hypothesis mixes in what numbers and texts it finds there."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


class Accepted(BaseException):
    """What is malformed was taken for good."""


@pytest.fixture(autouse=True)
def refused(monkeypatch):
    """What the programs do with good input: nothing of it is reached."""

    def reached(*arguments, **options):
        raise Accepted

    targets = (Pipeline, "draw"), (plan, "_sizes"), (bundles, "save_adapter"), (evaluation, "bars")
    for owner, name in targets:
        monkeypatch.setattr(owner, name, reached)


def tree(folder):
    """All that is in a folder, and how it looked: what is written changes something of it."""
    found = ((path, path.lstat()) for path in folder.rglob("*"))
    return {(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in found}


def check(capfd, folder, main, argv, names):
    """Calls a program with what is malformed, and holds it to what is promised."""
    with contextlib.suppress(OSError):  # the peak is of now from here: one of a test before would hide what comes
        Path("/proc/self/clear_refs").write_text("5")
    before, memory, began = tree(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    code = main([str(argument) for argument in argv])
    out, error = capfd.readouterr()
    assert (code, out) == (2, "") and error.startswith("error: ") and error.count("\n") == 1, (code, out, error[-3000:])
    assert error[:-1].isprintable() and len(error) < 1_100 and str(names) in error, (names, error)
    assert tree(folder) == before, "something was run, or written"
    assert time.monotonic() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**20, "more than a GiB was used"  # of KiB


@pytest.mark.slow
@pytest.mark.faults("a wrong value of a field of a model", count=len(hostile_files.WRONG_FIELDS))
def test_every_field_of_a_model_is_checked(tmp_path, capfd, monkeypatch, small_world):
    """Each with each kind of wrong value: there are few enough for all of them."""
    monkeypatch.chdir(tmp_path)
    for number, (file, name, value) in enumerate(hostile_files.WRONG_FIELDS):
        folder = tmp_path / str(number)
        argv = hostile_files.of_a_model(folder, small_world)
        hostile_files.change_field(folder / "model" / file, name, value)
        check(capfd, tmp_path, generate.main, argv, name)
        shutil.rmtree(folder)


def configured(sandbox, capfd, monkeypatch):
    """Gives a configuration to each of the programs in turn, before anything of jax is asked for."""
    monkeypatch.setattr(parallel, "prepare", lambda: pytest.fail("the configuration was taken for good"))
    programs = itertools.cycle([(train_program, []), (eval_program, ["--adapter", "."]), (train_program, ["--resume"])])
    monkeypatch.chdir(sandbox)
    path = sandbox / "config.yaml"

    def configure(config):
        text = config.text if isinstance(config.text, bytes) else config.text.encode(errors="surrogatepass")
        path.write_bytes(text)
        program, more = next(programs)
        check(capfd, sandbox, program.main, ["--config", path, *more], config.names)

    return configure


def throw_configurations(count, sandbox, capfd, monkeypatch):
    thrown(count)(given(CONFIGS)(configured(sandbox, capfd, monkeypatch)))()


@pytest.mark.slow
@pytest.mark.faults("a wrong value of a field of a configuration", count=len(WRONG_VALUES))
def test_every_field_of_a_configuration_is_checked(tmp_path, capfd, monkeypatch):
    configure = configured(tmp_path, capfd, monkeypatch)
    for config in WRONG_VALUES:
        configure(config)


def throw_files(count, sandbox, capfd, monkeypatch, world):
    monkeypatch.chdir(sandbox)
    numbers = itertools.count()

    @thrown(count)
    @given(st.data())
    def throw(data):
        folder = sandbox / str(next(numbers))  # a new one, because what was read once is kept by its name
        folder.mkdir()
        program, argv, names = data.draw(st.sampled_from(hostile_files.KINDS))(data.draw, folder, world)
        check(capfd, sandbox, program.main, argv, names)
        shutil.rmtree(folder)

    throw()


def test_malformed_configurations(tmp_path, capfd, monkeypatch):
    throw_configurations(50, tmp_path, capfd, monkeypatch)


def test_malformed_models_adapters_weights_and_prompts(tmp_path, capfd, monkeypatch, small_world):
    throw_files(30, tmp_path, capfd, monkeypatch, small_world)


@pytest.mark.slow
@pytest.mark.faults("a malformed configuration", count=500)
def test_many_malformed_configurations(tmp_path, capfd, monkeypatch):
    throw_configurations(500, tmp_path, capfd, monkeypatch)


@pytest.mark.slow
@pytest.mark.faults("a malformed model, adapter, weights or prompts", count=300)
def test_many_malformed_models_adapters_weights_and_prompts(tmp_path, capfd, monkeypatch, small_world):
    throw_files(300, tmp_path, capfd, monkeypatch, small_world)


def started(folder, *command):
    """Runs a program as a process of its own, with little memory and time."""
    before = tree(folder)
    limited = ["sh", "-c", f'ulimit -v {MEMORY >> 10} && exec "$@"', "sh", sys.executable, *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    run = subprocess.run(limited, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 2 and run.stdout == "", run
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1, run.stderr
    assert tree(folder) == before
    return run.stderr


@pytest.mark.slow
@pytest.mark.faults("a hostile configuration, for a process with little memory")
@pytest.mark.parametrize("text", [LAUGHS, f"model: {TAGS[0]}", "[" * 100_000, "seed: " + "9" * 5_000])
def test_a_process_refuses_a_configuration_as_its_main_does(text, tmp_path, capfd, monkeypatch):
    (tmp_path / "c.yaml").write_text(text)
    error = started(tmp_path, ROOT / "train.py", "--config", "c.yaml")
    monkeypatch.chdir(tmp_path)
    assert train_program.main(["--config", "c.yaml"]) == 2 and capfd.readouterr().err == error


@pytest.mark.slow
@pytest.mark.faults("a bomb, for a process with little memory")
@pytest.mark.parametrize("number", range(len(hostile_files.BOMBS)))
def test_a_process_refuses_a_bomb(number, tmp_path, small_world):
    name, content = hostile_files.BOMBS[number]
    (tmp_path / name).write_bytes(content(tmp_path / name) if callable(content) else content)
    command = ("-m", "fairjax.convert", name, "--model", small_world, "--output", "out")
    if name.startswith("bank"):
        more = hostile_files.arguments(small_world)
        command = (ROOT / "train.py", *more, "--dry-run", "--judges.bank", name, "--output", "out")
    assert name in started(tmp_path, *command)


PROMPTS = ("../../x", "/etc/x", "a/b\0c", "", ".", "..", "😀", "𝔘𝔫𝔦" * 40, "é" * 200, "x" * 4_000, "a\n\rb\x1b[31m",
           "<script>", "C:\\x", "-rf ~", "$(touch canary)")  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS)
def test_files_are_named_safely_whatever_a_prompt_says(prompt, tmp_path, monkeypatch, small_world):
    """Two prompts that read alike do not overwrite each other."""
    monkeypatch.chdir(tmp_path)
    drawn = hostile_files.np.zeros((1, 8, 8, 3), "uint8")
    monkeypatch.setattr(Pipeline, "draw", lambda self, prompts, rows, **options: [drawn for _ in rows])
    assert generate.main(["--model", str(small_world), "--num", "1", "--output", "images", "--", prompt, prompt]) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {tmp_path / "images"} and len(files) == 3
    assert all(len(path.name.encode()) < 200 and not set(path.name) & set("/\\\0\n\r\x1b<>$~") for path in files)


def test_of_a_models_folder_files_alone_are_copied(tmp_path, small_world):
    for part in ("text_encoder", "unet", "vae", "tokenizer", "scheduler"):
        shutil.copytree(small_world / part, tmp_path / "model" / part)
    os.mkfifo(tmp_path / "model" / "tokenizer" / "pipe")
    (tmp_path / "model" / "scheduler" / "endless").symlink_to("/dev/zero")
    (tmp_path / "model" / "scheduler" / "up").symlink_to(tmp_path)
    bundles.save_pipeline({}, Pipeline.from_pretrained(tmp_path / "model"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "scheduler").iterdir()} == {"scheduler_config.json"}
    assert not (tmp_path / "out" / "tokenizer" / "pipe").exists()
    Pipeline.from_pretrained(tmp_path / "out")


def test_a_prompt_that_is_no_text_is_refused(mistake, tmp_path):
    assert "is not text" in mistake(generate.main, "\udcff", "--output", tmp_path / "out")
