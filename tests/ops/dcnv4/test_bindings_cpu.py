"""The raw operators on CPU tensors: whatever they are called with, the process survives."""

import math
import os
import subprocess
import sys

import pytest
import torch
from ops.dcnv4 import problems as dcnv4_problems

import dcnv4_mm.ops.functional  # noqa: F401  (defines and loads the operators)

forward = torch.ops.dcnv4_mm.dcnv4_forward
backward = torch.ops.dcnv4_mm.dcnv4_backward


def make_problem(batch=2, dtype=torch.float32):
    return dcnv4_problems.make_problem(batch=batch, dtype=dtype)


BAD_ARGUMENTS = {
    "value of rank 3": dict(value=torch.zeros(5, 7, 32)),
    "offset_mask of rank 5": dict(offset_mask=torch.zeros(2, 6, 7, 59, 1)),
    "integer tensors": dict(
        grad_output=torch.zeros(2, 6, 7, 32, dtype=torch.int32),
        value=torch.zeros(2, 6, 7, 32, dtype=torch.int32),
        offset_mask=torch.zeros(2, 6, 7, 59, dtype=torch.int32),
    ),
    "two dtypes": dict(value=torch.zeros(2, 6, 7, 32, dtype=torch.float64)),
    "no rows": dict(value=torch.zeros(2, 0, 7, 32)),
    "no channels": dict(value=torch.zeros(2, 6, 7, 0)),
    "channels not divisible": dict(groups=3),
    "no groups": dict(groups=0),
    "negative groups": dict(groups=-2),
    "enormous groups": dict(groups=2**62),
    "kernel of one number": dict(kernel_size=[3]),
    "kernel of three numbers": dict(kernel_size=[3, 3, 3]),
    "empty kernel": dict(kernel_size=[0, 3]),
    "kernel larger than the image": dict(kernel_size=[9, 3]),
    "enormous kernel": dict(kernel_size=[2**62, 2**62]),
    "no points": dict(kernel_size=[1, 1], padding=[0, 0], remove_center=True),
    "no stride": dict(stride=[0, 1]),
    "negative stride": dict(stride=[1, -1]),
    "negative padding": dict(padding=[-1, 1]),
    "enormous padding": dict(padding=[2**62, 1]),
    "no dilation": dict(dilation=[1, 0]),
    "enormous dilation": dict(dilation=[2**62, 1]),
    "offset_mask of another batch": dict(offset_mask=torch.zeros(1, 6, 7, 59)),
    "offset_mask of another size": dict(offset_mask=torch.zeros(2, 6, 6, 59)),
    "offset_mask too narrow": dict(offset_mask=torch.zeros(2, 6, 7, 53)),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_raw_operators_reject_bad_arguments(case):
    bad = make_problem()._replace(**BAD_ARGUMENTS[case])
    with pytest.raises(RuntimeError, match="dcnv4: "):
        forward(*bad[1:])
    with pytest.raises(RuntimeError, match="dcnv4: "):
        backward(*bad, False, True, True)


@pytest.mark.parametrize(
    "grad_output", [torch.zeros(2, 6, 7), torch.zeros(2, 6, 7, 31), torch.zeros(2, 6, 7, 32).half()]
)
def test_raw_backward_rejects_a_bad_gradient(grad_output):
    bad = make_problem()._replace(grad_output=grad_output)
    with pytest.raises(RuntimeError, match="dcnv4: grad_output"):
        backward(*bad, False, True, True)


@pytest.mark.parametrize("scale", [math.nan, math.inf, 1e300])
def test_raw_operators_survive_any_offset_scale(scale):
    problem = make_problem()._replace(offset_scale=scale)
    assert not forward(*problem[1:]).any()
    assert not backward(*problem, False, True, True)[0].any()


def test_unknown_instruction_set_is_an_error():
    code = "import dcnv4_mm.ops.functional, torch; torch.ops.dcnv4_mm.cpu_isa()"
    refused = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DCNV4_MM_CPU_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert "DCNV4_MM_CPU_ISA must be default, avx2 or avx512, got 'mmx'" in refused.stderr
