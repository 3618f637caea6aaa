"""Floating-point operations of BEV cross-attention, for ``torch.utils.flop_counter``."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from dcnv4_mm.ops._bilinear import FLOPS_PER_SAMPLE
from dcnv4_mm.ops.bev_cross_attn import registration  # noqa: F401  (a formula needs its operator)


def _flops(value: Tensor, offsets_logits: Tensor, bev_mask: Tensor) -> int:
    """Operations of one pass in every camera that sees a query; all do without values."""
    known = not (bev_mask.is_meta or isinstance(bev_mask, FakeTensor))
    count = int(bev_mask.sum()) if known else bev_mask.numel()
    heads, numbers = offsets_logits.shape[2:]
    return FLOPS_PER_SAMPLE * count * heads * numbers // 3 * value.shape[-1]


@register_flop_formula(torch.ops.dcnv4_mm.bev_cross_attn_forward, get_raw=True)
def _forward_flops(
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    return _flops(value, offsets_logits, bev_mask)


@register_flop_formula(torch.ops.dcnv4_mm.bev_cross_attn_backward, get_raw=True)
def _backward_flops(
    grad_output: Tensor,
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    *arguments: Any,
    **_: Any,
) -> int:
    # The gradients of value and of the points take one pass each, if they are needed.
    return sum(arguments[-2:]) * _flops(value, offsets_logits, bev_mask)
