"""Programs compile for a slice of TPUs that is not there, with the collectives that were counted on the CPU."""

import re
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import pytest
from jax.errors import JaxRuntimeError
from small_world import arguments, fields

import train
from benchmarks import tpu
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning

compiles = pytest.mark.skipif(not find_spec("libtpu"), reason="pip install libtpu")


def test_collectives_are_counted_with_their_bytes():
    program = """
  %all-gather.1 = f32[24,3]{1,0} all-gather(%x), dimensions={0}
  %all-reduce-start = (f32[100]{0}, bf16[2,3]{1,0}) all-reduce-start(%a, %b)
  %all-reduce-done = f32[100]{0} all-reduce-done(%all-reduce-start)
  %fusion = f32[7]{0} fusion(%all-gather.1)
"""
    assert tpu.collectives(program) == {"all-gather": (1, 24 * 3 * 4), "all-reduce": (1, 100 * 4 + 6 * 2)}


def test_a_program_that_cannot_be_read_is_told_with_its_memory(capsys):
    """As what a later libtpu than jax's own compiles for v5p."""
    counted = SimpleNamespace(argument_size_in_bytes=3 << 30, temp_size_in_bytes=1 << 30)
    program = SimpleNamespace(
        memory_analysis=lambda: counted, cost_analysis=dict, as_text=Mock(side_effect=JaxRuntimeError)
    )
    result = tpu.compiled(SimpleNamespace(compile=lambda: program))
    tpu.tell(result, 16 << 30)
    assert "= 4.00 GiB of 16: fits" in (told := capsys.readouterr().out) and "what crosses chips is not known" in told
    assert tpu.row(result, 16 << 30, "exp").endswith("| not known |")
    program.as_text = lambda: "no collectives"
    assert tpu.row(tpu.compiled(SimpleNamespace(compile=lambda: program)), 16 << 30, "exp").endswith("| none |")


@compiles
def test_a_topology_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match="no TPUs 'v9:1x1': "):
        parallel.mesh_of("v9:1x1")
    with pytest.raises(ValueError, match="the memory of a TPU v3 is not known"):
        parallel.mesh_of("v3:2x2")


@pytest.mark.parametrize(
    ("topology", "devices", "gib"), [("v4:2x2x1", 8, 16), ("v5e:2x2", 4, 16), ("v5p:2x2x1", 4, 95), ("v6e:2x2", 4, 32)]
)
@compiles
def test_the_memory_of_a_device_that_is_not_there_is_known(topology, devices, gib):
    mesh = parallel.mesh_of(topology)
    assert (mesh.size, parallel.memory_left(mesh)) == (devices, gib << 30)


def test_what_shares_memory_with_everything_has_no_limit():
    assert parallel.memory_left(parallel.mesh(1)) is None


@pytest.mark.slow
@compiles
def test_a_run_is_planned_for_tpus(small_world, tmp_path, monkeypatch, capsys, mistake):
    monkeypatch.setenv("COLUMNS", "160")
    asked = [*arguments(small_world), "--training.images_per_prompt", "8", "--output", str(tmp_path / "run")]
    assert "--topology = 'v5e:2x2': only a --dry-run" in mistake(train.main, *asked, "--topology", "v5e:2x2")
    assert "--topology: no TPUs 'v5e:9'" in mistake(train.main, *asked, "--dry-run", "--topology", "v5e:9")
    assert train.main([*asked, "--dry-run", "--topology", "v5e:2x2"]) == 0
    told = capsys.readouterr().out
    assert "4 x TPU v5 lite" in told and re.search(r"MiB while a step runs, of 16.00 GiB", told)
    assert re.search(r"images at a time +│ 4 ", told)  # all of a chip's, of 2 prompts


@compiles
def test_the_step_compiles_for_a_slice(small_world):
    changes = {"training.images_per_prompt": 8, "training.num_steps": (2, 3), "training.microbatch": 2}
    config = load(Experiment, None, fields(small_world) | changes)
    lowered = Finetuning(config, parallel.mesh_of("v5e:2x2"), weights=False).lowered()
    result, usual = tpu.compiled(lowered), jax.config.jax_optimization_level
    with parallel.hastily():
        hasty = tpu.compiled(lowered)
    assert jax.config.jax_optimization_level == usual
    assert hasty.collectives == result.collectives
    assert hasty.arguments == result.arguments and hasty.temporary == pytest.approx(result.temporary, rel=0.1)
    assert result.temporary > 0 and result.flops > 0
    assert set(result.collectives) == {"all-gather", "all-reduce"}
    assert result.collectives["all-reduce"][0] == 1
