"""Every test runs on the CPU, with eight simulated devices, and refuses implicit rank promotion.

What one test compiles serves the others, and the programs that they start, through a cache: this session's own, or that
of JAX_COMPILATION_CACHE_DIR, with which a second session is faster. The files of tests are shared out over two
processes, because most of the time goes to compiling, which one core does; the longest are dealt out first, so that
neither process is left with one at the end.
"""

import fcntl
import gc
import os
import tempfile
from functools import lru_cache

from devices import OLDER_EMITTERS, flags

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers have that of the process that started them
    _COMPILED = tempfile.TemporaryDirectory(prefix="fairjax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ.setdefault("MPLCONFIGDIR", os.environ["JAX_COMPILATION_CACHE_DIR"])  # else matplotlib's is the user's home
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{flags(8)} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # what is compiled names no lines; with the next, it saves 4%
gc.set_threshold(100_000, 50, 1000)  # tracing makes millions of objects, which a collection looks through for nothing

import jax  # noqa: E402  (the flags above must be set before jax starts)
import pytest  # noqa: E402
from small_world import build  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

LONGEST_FIRST = (
    "test_step_torch", "test_cluster", "test_sd15", "test_interruption", "test_training", "test_convert",
    "test_precision", "test_cli", "test_step", "test_api", "test_chain",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    def rank(item):
        name = item.path.stem
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)  # stable: the order within a file stays
    for item in items:
        for mark in item.iter_markers("faults"):
            item.user_properties.append(("fault", _fault(*mark.args, **mark.kwargs)))


def _fault(what, count=1, lost="nothing"):
    return {"what": what, "count": count, "lost": lost}


def pytest_terminal_summary(terminalreporter, config):
    """Of `pytest -m faults`: how many faults were injected, how many survived, and what was lost by them."""
    if config.option.markexpr != "faults":
        return
    rows = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if report.when == "call" and "fault" in told:
                fault = told["fault"]
                row = rows.setdefault(fault["what"], [0, 0, told.get("lost", fault["lost"])])
                row[0] += fault["count"]
                row[1] += fault["count"] * (outcome == "passed")
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'injected':>8} {'survived':>8}  what, and what was lost")
    for what, (injected, survived, lost) in rows.items():
        terminalreporter.write_line(f"{injected:8} {survived:8}  {what}: {lost}")


@pytest.fixture
def mistake(capsys):
    """(a program's main, its arguments) -> the one line in which it says what is wrong, with exit code 2."""

    def told(main, *arguments):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return told


@pytest.fixture
def libtpu(monkeypatch):
    """Compiles for TPUs that are not there. It reads XLA's flags, too, and one it does not know ends the process."""
    pytest.importorskip("libtpu")
    jax.devices()  # jax has read them
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(OLDER_EMITTERS, ""))


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """The folder of a model and its judges, small and random."""
    return _built_once(tmp_path_factory, "world", build)


def _built_once(tmp_path_factory, name, build):
    """The folder that `build(folder)` fills, by the first of a session's processes that asks for it."""
    here = tmp_path_factory.getbasetemp()
    folder = (here.parent if "PYTEST_XDIST_WORKER" in os.environ else here) / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            unfinished = tmp_path_factory.mktemp(name)
            build(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="module")
def read_once():
    """Each model and its judges are read once in a module that asks for it; programs compiled for them serve all."""
    from fairjax.faces import reading
    from fairjax.pipeline import Pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "from_pretrained", staticmethod(lru_cache(Pipeline.from_pretrained)))
        for name in ("judges", "evaluation_judge"):
            patch.setattr(reading, name, _once(getattr(reading, name)))
        yield


def _once(read):
    """A section of a configuration cannot be hashed; its text can."""
    kept = {}

    def reading(section, *dtype, **how):
        key = (section.model_dump_json(), *dtype, *how.items())
        if key not in kept:
            kept[key] = read(section, *dtype, **how)
        return kept[key]

    return reading


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder of small models, for all tests that read them."""
    import small_models

    return _built_once(tmp_path_factory, "models", small_models.write)
