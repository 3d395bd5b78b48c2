"""Programs compile for a slice of TPUs that is not there, with the collectives that were counted on the CPU."""

import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from jax.experimental import topologies
from small_world import arguments, fields

import train
from benchmarks import tpu
from fairjax import parallel
from fairjax.config import Experiment
from fairjax.models.functional import num_params
from fairjax.program import UserError
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning

compiles = pytest.mark.usefixtures("libtpu")


def test_collectives_are_counted_with_their_bytes():
    program = """
  %all-gather.1 = f32[24,3]{1,0} all-gather(%x), dimensions={0}
  %all-reduce-start = (f32[100]{0}, bf16[2,3]{1,0}) all-reduce-start(%a, %b)
  %all-reduce-done = f32[100]{0} all-reduce-done(%all-reduce-start)
  %fusion = f32[7]{0} fusion(%all-gather.1)
"""
    assert tpu.collectives(program) == {"all-gather": (1, 24 * 3 * 4), "all-reduce": (1, 100 * 4 + 6 * 2)}


def test_of_what_is_started_and_not_waited_for_only_what_arrives_is_counted():
    """Its result has what is sent, too; XLA's shape inference gives an all-reduce's none of it."""
    program = """
  %gathering = (f32[3,2]{1,0:T(4,128)}, f32[24,2]{1,0:T(8,128)S(1)}) all-gather-start(%x), dimensions={0}
  %both = ((f32[3], bf16[5]), (f32[24], bf16[40])) all-gather-start(%x, %y), dimensions={0}
  %sent = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%z)
  %all-gather-done = f32[24,2]{1,0} all-gather-done(%gathering)
"""
    gathered = 24 * 2 * 4 + 24 * 4 + 40 * 2
    assert tpu.collectives(program) == {"all-gather": (2, gathered), "collective-permute": (1, 16)}


def test_a_program_that_cannot_be_read_is_told_with_its_memory(capsys):
    """As what a later libtpu than jax's own compiles for v5p."""
    counted = SimpleNamespace(argument_size_in_bytes=3 << 30, temp_size_in_bytes=1 << 30)
    cost = {"flops": 1e9, "bytes accessed": 1e6}
    program = SimpleNamespace(
        memory_analysis=lambda: counted, cost_analysis=lambda: cost, as_text=Mock(side_effect=JaxRuntimeError)
    )
    result = tpu.compiled(SimpleNamespace(compile=lambda: program))
    tpu.tell(result, 16 << 30)
    assert "= 4.00 GiB of 16: fits" in (told := capsys.readouterr().out) and "what crosses chips is not known" in told
    assert "1e+09 FLOPs, 1e+06 bytes of memory traffic, no estimate of its time" in told
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
    ("topology", "devices", "gib"), [("v4:2x2x1", 4, 32), ("v5e:2x2", 4, 16), ("v5p:2x2x1", 4, 95), ("v6e:2x2", 4, 32)]
)
@compiles
def test_the_memory_of_a_device_that_is_not_there_is_known(topology, devices, gib):
    """A device is a chip, as on a real one: also of v4, whose two cores libtpu would take for two."""
    mesh = parallel.mesh_of(topology)
    assert (mesh.size, parallel.memory_left(mesh)) == (devices, gib << 30)


def test_what_shares_memory_with_everything_has_no_limit():
    assert parallel.memory_left(parallel.mesh(1)) is None


def test_devices_that_do_not_say_what_memory_they_have_are_one_line(monkeypatch):
    """As GPUs with XLA_PYTHON_CLIENT_ALLOCATOR=platform."""
    silent = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    monkeypatch.setattr(jax, "devices", lambda: [silent])
    mesh = SimpleNamespace(devices=np.array([silent]), local_devices=[silent])
    with pytest.raises(UserError, match=r"ALLOCATOR=platform: give training\.microbatch and evaluation\.batch_size$"):
        parallel.memory_left(mesh)


def test_the_memory_that_is_left_is_what_nothing_is_in(monkeypatch):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 80 << 30, "bytes_in_use": 3 << 30})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert parallel.memory_left(SimpleNamespace(devices=np.array([device]), local_devices=[device])) == 77 << 30


@compiles
def test_several_slices_are_one_row(monkeypatch):
    """Each of them in one piece; what crosses them crosses once."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2).devices
    monkeypatch.setattr(jax, "devices", lambda: devices)
    mesh = parallel.mesh()
    assert [device.slice_index for device in mesh.devices] == [0] * 16 + [1] * 16
    everywhere = parallel.spread(
        lambda x: jax.lax.pmean(x.sum(), parallel.AXIS), mesh, parallel.SPREAD, parallel.REPLICATED
    )
    x = parallel.shapes(jax.ShapeDtypeStruct((32, 128), np.float32), mesh, parallel.SPREAD)
    assert tpu.collectives(everywhere.lower(x).compile().as_text())


@pytest.fixture
def planned(small_world, tmp_path, monkeypatch, capsys):
    """(a topology) -> what `--dry-run` tells of a run on it."""

    def telling(topology):
        monkeypatch.setenv("COLUMNS", "160")
        asked = [*arguments(small_world), "--training.images_per_prompt", "8", "--output", str(tmp_path / "run")]
        assert train.main([*asked, "--dry-run", "--topology", topology]) == 0
        return capsys.readouterr().out

    return telling


def test_a_run_is_planned_for_devices_that_are_not_here(planned, monkeypatch):
    """Four simulated ones of 7 GiB stand for them, so that nothing is compiled for TPUs, which takes long."""
    asked, mesh = [], parallel.mesh(4)
    monkeypatch.setattr(parallel, "mesh_of", lambda topology: asked.append(topology) or mesh)
    monkeypatch.setattr(parallel, "memory_left", lambda mesh: 7 << 30)
    told = planned("v5e:2x2")
    assert asked == ["v5e:2x2"] and "4 x cpu" in told and "MiB while a step runs, of 7.00 GiB" in told
    assert re.search(r"images at a time +│ 4 ", told)  # all of a device's, of 2 prompts


@pytest.mark.slow
@compiles
def test_a_run_is_planned_for_tpus(planned):
    told = planned("v5e:2x2")
    assert "4 x TPU v5 lite" in told and "MiB while a step runs, of 16.00 GiB" in told
    assert re.search(r"images at a time +│ 4 ", told)


@compiles
def test_a_topology_that_cannot_be_planned_for_is_one_line(tmp_path, mistake):
    asked = ["--output", tmp_path / "run"]
    assert "--topology = 'v5e:2x2': only a --dry-run" in mistake(train.main, *asked, "--topology", "v5e:2x2")
    assert "--topology: no TPUs 'v5e:9'" in mistake(train.main, *asked, "--dry-run", "--topology", "v5e:9")


def test_an_evaluation_at_full_size_makes_images_on_each_device_and_sends_nothing():
    """As `python -m benchmarks.tpu` lowers it, for eight simulated devices."""
    config = load(Experiment, Path("configs/sd15/exp4-gender-race-age-both.yaml"), {})
    lowered = tpu.lowered("evaluation", config, parallel.mesh(8), each=5)
    assert (lowered.out_info.shape, lowered.out_info.dtype) == ((40, 512, 512, 3), np.uint8)
    assert not re.search(r"stablehlo\.(all_gather|all_reduce|all_to_all|reduce_scatter|collective_)", lowered.as_text())


@compiles
def test_the_step_compiles_for_a_slice(small_world):
    changes = {"training.images_per_prompt": 8, "training.num_steps": (2, 3), "training.microbatch": 2}
    config = load(Experiment, None, fields(small_world) | changes)
    finetuning = Finetuning(config, parallel.mesh_of("v5e:2x2"), weights=False)
    lowered = finetuning.lowered()
    result, usual = tpu.compiled(lowered), jax.config.jax_optimization_level
    with parallel.hastily():
        hasty = tpu.compiled(lowered)
    assert jax.config.jax_optimization_level == usual
    assert hasty.collectives == result.collectives
    assert hasty.arguments == result.arguments and hasty.temporary == pytest.approx(result.temporary, rel=0.1)
    assert result.temporary > 0 and result.flops > 0 and 0 < result.estimate < 1
    said = 2 * 8 * (len(finetuning.attributes[0].classes) + 1)  # of gender, and whether there is a face
    logged = len(lowered.out_info[1]) - 1  # the norm of the gradient is computed after
    trained = num_params(finetuning.initial_shapes().bundle) + logged
    assert result.collectives == {"all-gather": (1, 4 * said), "all-reduce": (1, 4 * trained)}
