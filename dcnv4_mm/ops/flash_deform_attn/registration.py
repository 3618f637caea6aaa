"""Defines the raw attention operators; compiled libraries add faster kernels for their device."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcnv4_mm.ops._derivatives import RawOperator
from dcnv4_mm.ops._extension import warns_without_kernels
from dcnv4_mm.ops._library import library
from dcnv4_mm.ops.flash_deform_attn import reference
from dcnv4_mm.ops.flash_deform_attn.layout import read_spatial_shapes

__all__ = ["RAW_OPERATORS", "SCHEMAS"]

_FLAGS = "bool deterministic, bool need_value_grad, bool need_points_grad"
_MS_TENSORS = "Tensor value, Tensor locations, Tensor weights, SymInt[] level_sizes"
_FLASH_TENSORS = "Tensor value, Tensor locations_logits, SymInt[] level_sizes, int num_points"

SCHEMAS = (
    f"ms_deform_attn_forward({_MS_TENSORS}) -> Tensor",
    f"ms_deform_attn_backward(Tensor grad_output, {_MS_TENSORS}, {_FLAGS}) "
    "-> (Tensor, Tensor, Tensor)",
    f"flash_deform_attn_forward({_FLASH_TENSORS}) -> Tensor",
    f"flash_deform_attn_backward(Tensor grad_output, {_FLASH_TENSORS}, {_FLAGS}) "
    "-> (Tensor, Tensor)",
)


def _with_sizes(arguments: tuple[Any, ...]) -> list[Any]:
    """Arguments with the sizes that an integer tensor (L, 2) among them holds."""
    return [
        read_spatial_shapes(argument)
        if isinstance(argument, Tensor) and not argument.is_floating_point()
        else argument
        for argument in arguments
    ]


def _read_sizes(name: str, *arguments: Any) -> Any:
    """Calls an operator with the sizes that the integer tensor (L, 2) among the arguments holds."""
    return getattr(torch.ops.dcnv4_mm, name).default(*_with_sizes(arguments))


for _schema in SCHEMAS:
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _name = _schema.split("(")[0]
    _reference = warns_without_kernels(getattr(reference, f"{_name}_reference"))
    library.impl(_name, _reference, "CompositeExplicitAutograd")
    # For compiled graphs, which cannot read a tensor: the operator does, when it runs.
    _schema = _schema.replace("(", ".tensor(", 1).replace("SymInt[] level", "Tensor level")
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe))
    library.impl(f"{_name}.tensor", partial(_read_sizes, _name), "CompositeExplicitAutograd")


@torch.library.register_fake("dcnv4_mm::ms_deform_attn_forward.tensor", lib=library)
@torch.library.register_fake("dcnv4_mm::ms_deform_attn_forward", lib=library)
def _ms_deform_attn_forward_fake(
    value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int] | Tensor
) -> Tensor:
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@torch.library.register_fake("dcnv4_mm::ms_deform_attn_backward.tensor", lib=library)
@torch.library.register_fake("dcnv4_mm::ms_deform_attn_backward", lib=library)
def _ms_deform_attn_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    level_sizes: list[int] | Tensor,
    deterministic: bool,
    need_value_grad: bool,
    need_points_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape if need_value_grad else (0,)),
        locations.new_empty(locations.shape if need_points_grad else (0,)),
        weights.new_empty(weights.shape if need_points_grad else (0,)),
    )


@torch.library.register_fake("dcnv4_mm::flash_deform_attn_forward.tensor", lib=library)
@torch.library.register_fake("dcnv4_mm::flash_deform_attn_forward", lib=library)
def _flash_deform_attn_forward_fake(
    value: Tensor, locations_logits: Tensor, level_sizes: list[int] | Tensor, num_points: int
) -> Tensor:
    return value.new_empty(*locations_logits.shape[:2], value.shape[2] * value.shape[3])


@torch.library.register_fake("dcnv4_mm::flash_deform_attn_backward.tensor", lib=library)
@torch.library.register_fake("dcnv4_mm::flash_deform_attn_backward", lib=library)
def _flash_deform_attn_backward_fake(
    grad_output: Tensor,
    value: Tensor,
    locations_logits: Tensor,
    level_sizes: list[int] | Tensor,
    num_points: int,
    deterministic: bool,
    need_value_grad: bool,
    need_points_grad: bool,
) -> tuple[Tensor, Tensor]:
    return (
        value.new_empty(value.shape if need_value_grad else (0,)),
        locations_logits.new_empty(locations_logits.shape if need_points_grad else (0,)),
    )


def _forward_reference(name: str, *arguments: Any) -> Tensor:
    """The reference of a forward, of which the sizes may be a tensor too."""
    return getattr(reference, f"{name}_forward_reference")(*_with_sizes(arguments))


def _raw_operator(name: str, overload: str, batched: int) -> RawOperator:
    return RawOperator(
        forward=getattr(getattr(torch.ops.dcnv4_mm, f"{name}_forward"), overload),
        backward=getattr(getattr(torch.ops.dcnv4_mm, f"{name}_backward"), overload),
        reference=partial(_forward_reference, name),
        differentiable=batched,
        batched=batched,
        tensors=batched + (overload == "tensor"),
    )


RAW_OPERATORS = {
    (name, overload): _raw_operator(name, overload, batched)
    for name, batched in (("ms_deform_attn", 3), ("flash_deform_attn", 2))
    for overload in ("default", "tensor")
}
