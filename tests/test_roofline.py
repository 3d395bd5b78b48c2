"""What benchmarks/roofline.py counts of a GPU's program, on lines of one: no GPU, nor its compiler, is here."""

import subprocess
import sys

import pytest

from benchmarks.roofline import BANDWIDTH, PEAK, kernels

PROGRAM = """
%fused_dot (p0: bf16[2,64,32], p1: bf16[2,32,16]) -> bf16[2,64,16] {
  %p0 = bf16[2,64,32]{2,1,0} parameter(0)
  %p1 = bf16[2,32,16]{2,1,0} parameter(1)
  ROOT %dot.1 = bf16[2,64,16]{2,1,0} dot(%p0, %p1), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}
}

%fused_add (p0.1: f32[100], p1.1: f32[100]) -> f32[100] {
  %p0.1 = f32[100]{0} parameter(0)
  %p1.1 = f32[100]{0} parameter(1)
  ROOT %add = f32[100]{0} add(%p0.1, %p1.1)
}

%body (state: (f32[100])) -> (f32[100]) {
  %state = (f32[100]{0}) parameter(0)
  %x = f32[100]{0} get-tuple-element(%state), index=0
  %loop_add_fusion.7 = f32[100]{0} fusion(%x, %x), kind=kLoop, calls=%fused_add
  ROOT %tuple = (f32[100]{0}) tuple(%loop_add_fusion.7)
}

ENTRY %main (images: bf16[4,8,8,3], a: bf16[2,64,32]) -> f32[100] {
  %images = bf16[4,8,8,3]{3,2,1,0} parameter(0)
  %kernel = bf16[16,5,5,3]{3,2,1,0} parameter(1)
  %a = bf16[2,64,32]{2,1,0} parameter(2)
  %b = bf16[2,32,16]{2,1,0} parameter(3)
  %q = bf16[2,64,8,40]{3,2,1,0} parameter(4)
  %k = bf16[2,78,8,40]{3,2,1,0} parameter(5)
  %start = (f32[100]{0}) parameter(6)
  %conv.1 = (bf16[4,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %out = bf16[4,8,8,16]{3,2,1,0} get-tuple-element(%conv.1), index=0
  %conv.2 = (bf16[4,8,8,3]{3,2,1,0}, u8[0]{0}) custom-call(%out, %kernel), dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %conv.3 = (bf16[16,5,5,3]{3,2,1,0}, u8[0]{0}) custom-call(%images, %out), dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  %fusion.2 = bf16[2,64,16]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot
  %fmha = (bf16[2,64,8,40]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax"
  %pulled = (bf16[2,64,8,40]{3,2,1,0}, bf16[2,78,8,40]{3,2,1,0}, bf16[2,78,8,40]{3,2,1,0}, u8[0]{0}) \
custom-call(%q, %k, %k, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  ROOT %while = (f32[100]{0}) while(%start), condition=%less, body=%body
}
"""


@pytest.mark.parametrize(
    ("kind", "flops", "numbers"),
    [
        ("cuDNN convForward", 2 * (4 * 8 * 8 * 16) * (5 * 5 * 3), 4 * 8 * 8 * (3 + 16) + 16 * 5 * 5 * 3),
        ("cuDNN convBackwardInput", 2 * (4 * 8 * 8 * 16) * (5 * 5 * 3), 4 * 8 * 8 * (3 + 16) + 16 * 5 * 5 * 3),
        ("cuDNN convBackwardFilter", 2 * (4 * 8 * 8 * 16) * (5 * 5 * 3), 4 * 8 * 8 * (3 + 16) + 16 * 5 * 5 * 3),
        ("products of matrices", 2 * 2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16 + 64 * 16)),
        ("cuDNN fmhaSoftmax", 2 * 2 * (2 * 8) * 64 * 78 * 40, 2 * 8 * 40 * (2 * 64 + 2 * 78)),
        ("cuDNN fmhaSoftmaxBackward", 5 * 2 * (2 * 8) * 64 * 78 * 40, 2 * 8 * 40 * (3 * 64 + 4 * 78)),
        ("loop_add_fusion", 0, 2 * 3 * 100),  # float32, twice a bfloat16; of the loop's body, once
    ],
)
def test_flops_and_bytes_of_a_kernel(kind, flops, numbers):
    (kernel,) = [kernel for kernel in kernels(PROGRAM) if kernel.kind == kind]
    assert kernel.flops == pytest.approx(flops) and kernel.bytes == 2 * numbers
    assert kernel.seconds == pytest.approx(max(flops / PEAK, 2 * numbers / BANDWIDTH))


def test_what_takes_no_time_is_no_kernel():
    assert len(kernels(PROGRAM)) == 7


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('%g = f32[8,8]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm"', "product of matrices by cublas"),
        ("%c = f32[100]{0} conditional(%p, %x, %x), branch_computations={%one, %other}", "no branch is known to run"),
    ],
)
def test_what_is_not_counted_is_said(line, said):
    with pytest.raises(ValueError, match=said):
        kernels(PROGRAM.replace("  ROOT %while", f"  {line}\n  ROOT %while"))


PROFILED = """
import jax
import jax.numpy as jnp

from benchmarks import parts

program = jax.jit(lambda x: jnp.sort(x) + jnp.tanh(x @ x)).lower(jnp.ones((64, 64))).compile()
jax.block_until_ready(program(jnp.ones((64, 64))))
found = parts.kernels(lambda: program(jnp.ones((64, 64))))
assert found and all(time > 0 for times in found.values() for time in times)
assert not any(name[-1].isdigit() for name in found), found
table = parts.slowest("a part", found, 1)
assert table.row_count == 2 and list(table.columns[3].cells)[-1] == "100%"
"""


def test_what_kernels_took_is_read_of_the_profiler():
    """What benchmarks/parts.py shows beside it, here of a CPU's; apart, as a profiler is not to meet libtpu."""
    subprocess.run([sys.executable, "-c", PROFILED], check=True, timeout=300)
