"""Handles for counters that trace a model, against torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dcnv4_mm.ops.flop_handles import flop_handles
from dcnv4_mm.ops.functional import bev_cross_attn, dcnv4, flash_deform_attn, ms_deform_attn

FlopAnalyzer = pytest.importorskip(
    "mmengine.analysis", reason="mmengine is not installed"
).FlopAnalyzer

SHAPES = [(5, 6), (3, 3)]


def image_calls(value, rows):
    return [
        dcnv4(value, rows, groups=2),
        dcnv4(value, rows, groups=2, kernel_size=(5, 3), padding=(2, 1), remove_center=True),
    ]


def attention_calls(value, packed, locations, weights):
    return [
        flash_deform_attn(value, SHAPES, packed, num_points=2),
        ms_deform_attn(value, SHAPES, locations, weights),
    ]


def camera_calls(value, packed, reference_points, bev_mask):
    return [bev_cross_attn(value, SHAPES, packed, reference_points, bev_mask, num_points=2)]


CASES = {
    "dcnv4": (image_calls, [(2, 6, 7, 32), (2, 6, 7, 104)]),
    "attention": (
        attention_calls,
        [(2, 39, 4, 8), (2, 5, 4, 12), (2, 5, 4, 2, 2, 2), (2, 5, 4, 2, 2)],
    ),
    "cameras": (camera_calls, [(2, 3, 39, 4, 8), (2, 5, 4, 12), (2, 3, 5, 2, 2), (2, 3, 5)]),
}


@pytest.mark.parametrize("name", CASES)
def test_multiply_adds_are_half_of_torchs_operations(name):
    calls, shapes = CASES[name]
    tensors = [torch.rand(shape) for shape in shapes]
    if name == "cameras":
        tensors[-1] = tensors[-1] >= 0

    class Model(nn.Module):
        def forward(self, *tensors):
            return calls(*tensors)

    with FlopCounterMode(display=False) as counter:
        calls(*tensors)
    analyzer = FlopAnalyzer(Model(), tuple(tensors)).set_op_handle(**flop_handles())
    assert analyzer.total() == counter.get_total_flops() / 2 > 0
    assert not analyzer.unsupported_ops()
