"""Defines the raw operators of DCNv4; compiled libraries add faster kernels for their device."""

import torch
from torch import Tensor

from dcnv4_mm.ops._derivatives import RawOperator
from dcnv4_mm.ops._extension import warns_without_kernels
from dcnv4_mm.ops._library import library
from dcnv4_mm.ops.dcnv4.layout import output_size
from dcnv4_mm.ops.dcnv4.reference import dcnv4_backward_reference, dcnv4_forward_reference

__all__ = ["SCHEMAS", "dcnv4_raw"]

_GEOMETRY = (
    "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
    "float offset_scale, bool remove_center, bool fast"
)

SCHEMAS = (
    f"dcnv4_forward(Tensor value, Tensor offset_mask, {_GEOMETRY}) -> Tensor",
    f"dcnv4_backward(Tensor grad_output, Tensor value, Tensor offset_mask, {_GEOMETRY}, "
    "bool deterministic, bool need_value_grad, bool need_offset_mask_grad) -> (Tensor, Tensor)",
)

for _schema in SCHEMAS:
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
for _name, _reference in (
    ("dcnv4_forward", dcnv4_forward_reference),
    ("dcnv4_backward", dcnv4_backward_reference),
):
    library.impl(_name, warns_without_kernels(_reference), "CompositeExplicitAutograd")

dcnv4_raw = RawOperator(
    forward=torch.ops.dcnv4_mm.dcnv4_forward.default,
    backward=torch.ops.dcnv4_mm.dcnv4_backward.default,
    reference=dcnv4_forward_reference,
    differentiable=2,
    batched=2,
    tensors=2,
)


@torch.library.register_fake("dcnv4_mm::dcnv4_forward", lib=library)
def _dcnv4_forward_fake(
    value: Tensor,
    offset_mask: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    fast: bool,
) -> Tensor:
    batch, height, width, channels = value.shape
    size = output_size((height, width), kernel_size, stride, padding, dilation)  # type: ignore[arg-type]
    return value.new_empty(batch, *size, channels)


@torch.library.register_fake("dcnv4_mm::dcnv4_backward", lib=library)
def _dcnv4_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    offset_mask: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    fast: bool,
    deterministic: bool,
    need_value_grad: bool,
    need_offset_mask_grad: bool,
) -> tuple[Tensor, Tensor]:
    return (
        value.new_empty(value.shape if need_value_grad else (0,)),
        offset_mask.new_empty(offset_mask.shape if need_offset_mask_grad else (0,)),
    )
