"""Floating-point operations of DCNv4, known to ``torch.utils.flop_counter.FlopCounterMode``."""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from dcnv4_mm.ops._bilinear import FLOPS_PER_SAMPLE
from dcnv4_mm.ops.dcnv4 import registration  # noqa: F401  (a formula needs its operator)
from dcnv4_mm.ops.dcnv4.layout import num_points


def _sampling_flops(output_shape: torch.Size, arguments: tuple[Any, ...]) -> int:
    """Operations of one pass over all samples; arguments as in the schema, from kernel_size on."""
    kernel_size, remove_center = arguments[0], arguments[6]
    return FLOPS_PER_SAMPLE * math.prod(output_shape) * num_points(kernel_size, remove_center)


@register_flop_formula(torch.ops.dcnv4_mm.dcnv4_forward)
def _forward_flops(
    value: torch.Size, offset_mask: torch.Size, *arguments: Any, out_shape: torch.Size, **_: Any
) -> int:
    return _sampling_flops(out_shape, arguments)


@register_flop_formula(torch.ops.dcnv4_mm.dcnv4_backward)
def _backward_flops(
    grad_output: torch.Size, value: torch.Size, offset_mask: torch.Size, *arguments: Any, **_: Any
) -> int:
    # Each of the two gradients takes one pass, if it is needed.
    need_value_grad, need_offset_mask_grad = arguments[-2:]
    return (need_value_grad + need_offset_mask_grad) * _sampling_flops(grad_output, arguments)
