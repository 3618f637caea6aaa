"""Defines the raw operators of BEV cross-attention; compiled libraries add faster kernels."""

import torch
from torch import Tensor

from dcnv4_mm.ops._derivatives import RawOperator
from dcnv4_mm.ops._extension import warns_without_kernels
from dcnv4_mm.ops._library import library
from dcnv4_mm.ops.bev_cross_attn import reference

__all__ = ["SCHEMAS", "bev_cross_attn_raw"]

_FLAGS = "bool deterministic, bool need_value_grad, bool need_points_grad"
_TENSORS = (
    "Tensor value, Tensor offsets_logits, Tensor reference_points, Tensor bev_mask, "
    "SymInt[] level_sizes, int num_points"
)

SCHEMAS = (
    f"bev_cross_attn_forward({_TENSORS}) -> Tensor",
    f"bev_cross_attn_backward(Tensor grad_output, {_TENSORS}, {_FLAGS}) -> (Tensor, Tensor)",
)

for _schema in SCHEMAS:
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _name = _schema.split("(")[0]
    _reference = warns_without_kernels(getattr(reference, f"{_name}_reference"))
    library.impl(_name, _reference, "CompositeExplicitAutograd")


@torch.library.register_fake("dcnv4_mm::bev_cross_attn_forward", lib=library)
def _bev_cross_attn_forward_fake(
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    level_sizes: list[int],
    num_points: int,
) -> Tensor:
    return value.new_empty(*offsets_logits.shape[:2], value.shape[3] * value.shape[4])


@torch.library.register_fake("dcnv4_mm::bev_cross_attn_backward", lib=library)
def _bev_cross_attn_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    level_sizes: list[int],
    num_points: int,
    deterministic: bool,
    need_value_grad: bool,
    need_points_grad: bool,
) -> tuple[Tensor, Tensor]:
    return (
        value.new_empty(value.shape if need_value_grad else (0,)),
        offsets_logits.new_empty(offsets_logits.shape if need_points_grad else (0,)),
    )


bev_cross_attn_raw = RawOperator(
    forward=torch.ops.dcnv4_mm.bev_cross_attn_forward.default,
    backward=torch.ops.dcnv4_mm.bev_cross_attn_backward.default,
    reference=reference.bev_cross_attn_forward_reference,
    differentiable=2,
    batched=4,
    tensors=4,
)
