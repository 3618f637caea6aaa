"""Floating-point operations of deformable attention, for ``torch.utils.flop_counter``."""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from dcnv4_mm.ops._bilinear import FLOPS_PER_SAMPLE
from dcnv4_mm.ops.flash_deform_attn import registration  # noqa: F401  (a formula needs its operator)


def _ms_flops(value: torch.Size, weights: torch.Size) -> int:
    """Operations of one pass over all samples: D channels for every weight."""
    return FLOPS_PER_SAMPLE * math.prod(weights) * value[-1]


def _flash_flops(value: torch.Size, locations_logits: torch.Size) -> int:
    """The same; a third of the elements are logits."""
    return FLOPS_PER_SAMPLE * math.prod(locations_logits) // 3 * value[-1]


@register_flop_formula(torch.ops.dcnv4_mm.ms_deform_attn_forward)
def _ms_forward_flops(
    value: torch.Size, locations: torch.Size, weights: torch.Size, *_: Any, **__: Any
) -> int:
    return _ms_flops(value, weights)


@register_flop_formula(torch.ops.dcnv4_mm.ms_deform_attn_backward)
def _ms_backward_flops(
    grad_output: torch.Size,
    value: torch.Size,
    locations: torch.Size,
    weights: torch.Size,
    *arguments: Any,
    **_: Any,
) -> int:
    # The gradients of value and of the points take one pass each, if they are needed.
    return sum(arguments[-2:]) * _ms_flops(value, weights)


@register_flop_formula(torch.ops.dcnv4_mm.flash_deform_attn_forward)
def _flash_forward_flops(
    value: torch.Size, locations_logits: torch.Size, *_: Any, **__: Any
) -> int:
    return _flash_flops(value, locations_logits)


@register_flop_formula(torch.ops.dcnv4_mm.flash_deform_attn_backward)
def _flash_backward_flops(
    grad_output: torch.Size,
    value: torch.Size,
    locations_logits: torch.Size,
    *arguments: Any,
    **_: Any,
) -> int:
    return sum(arguments[-2:]) * _flash_flops(value, locations_logits)
