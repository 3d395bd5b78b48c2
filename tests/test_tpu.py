"""The step compiles for a slice of TPUs that is not there, with the collectives that were counted on the CPU."""

from importlib.util import find_spec

import pytest
from small_world import fields

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


@compiles
def test_a_topology_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match="no TPUs 'v9:1x1': "):
        parallel.mesh_of("v9:1x1")


@compiles
def test_the_step_compiles_for_a_slice(small_world):
    mesh = parallel.mesh_of("v5e:2x2")
    changes = {"training.prompts_per_step": 2, "training.images_per_prompt": 8, "training.num_steps": (2, 3)}
    finetuning = Finetuning(load(Experiment, None, fields(small_world) | changes), mesh, weights=False)
    result = tpu.compile_step(finetuning.lowered())
    assert result.temporary > 0 and result.flops > 0
    assert set(result.collectives) == {"all-gather", "all-reduce"}
    assert result.collectives["all-reduce"][0] == 1
