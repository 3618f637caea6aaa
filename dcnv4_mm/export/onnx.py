"""The operators as ONNX nodes of the domain ``dcnv4_mm``, served in onnxruntime by our kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dcnv4_mm
from dcnv4_mm.export.portable import portable_decompositions
from dcnv4_mm.ops.dcnv4.layout import output_size

__all__ = ["custom_ops_library", "onnx_decompositions"]


def custom_ops_library() -> Path:
    """Path of the custom-operator library that an onnxruntime session needs for the nodes.

    The file exists if the package was built with onnxruntime's headers; see docs/export.md.

    Returns:
        Path for ``onnxruntime.SessionOptions.register_custom_ops_library``; it need not exist.
    """
    return Path(dcnv4_mm.__file__).with_name("lib") / "libdcnv4_mm_onnxruntime.so"


def onnx_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """Decompositions that make each operator one ONNX node.

    Pass them to ``ExportedProgram.run_decompositions``. The nodes ``DCNv4``, ``MSDeformAttn`` and
    ``FlashDeformAttn`` of the domain ``dcnv4_mm`` have the operators' float32 tensors as inputs
    and their scalars as attributes; the level sizes are an input too. An operator without a node
    becomes standard operators, as with
    :func:`~dcnv4_mm.export.portable.portable_decompositions`.

    Returns:
        Raw forward operator -> function with the same arguments.

    Example:
        >>> from dcnv4_mm.layers import DCNv4
        >>> x = torch.randn(1, 8, 8, 32)
        >>> program = torch.export.export(DCNv4(32, groups=2).eval(), (x,))
        >>> program = program.run_decompositions(onnx_decompositions())
        >>> "domain: dcnv4_mm" in str(program.graph)
        True
    """
    return {
        **portable_decompositions(),
        torch.ops.dcnv4_mm.dcnv4_forward.default: _dcnv4,
        torch.ops.dcnv4_mm.flash_deform_attn_forward.default: _flash_deform_attn,
        torch.ops.dcnv4_mm.ms_deform_attn_forward.default: _ms_deform_attn,
    }


def _dcnv4(
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
    attributes = dict(
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        offset_scale=offset_scale,
        remove_center=int(remove_center),
    )
    batch, height, width, channels = value.shape
    size = output_size((height, width), kernel_size, stride, padding, dilation)  # type: ignore[arg-type]
    return _node("DCNv4", (value, offset_mask), attributes, (batch, *size, channels))


def _ms_deform_attn(
    value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]
) -> Tensor:
    inputs = (value, locations, weights, _int64_vector(level_sizes))
    return _node("MSDeformAttn", inputs, {}, _attended(value, locations))


def _flash_deform_attn(
    value: Tensor, locations_logits: Tensor, level_sizes: list[int], num_points: int
) -> Tensor:
    inputs = (value, locations_logits, _int64_vector(level_sizes))
    attributes = dict(num_points=num_points)
    return _node("FlashDeformAttn", inputs, attributes, _attended(value, locations_logits))


def _attended(value: Tensor, points: Tensor) -> tuple[int, ...]:
    return (*points.shape[:2], value.shape[2] * value.shape[3])


def _int64_vector(sizes: list[int]) -> Tensor:
    # torch.tensor would specialize a symbolic size to its value.
    return torch.stack([torch.scalar_tensor(size, dtype=torch.int64) for size in sizes])


def _node(
    name: str, inputs: tuple[Tensor, ...], attributes: dict[str, Any], shape: tuple[int, ...]
) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"dcnv4_mm::{name}", inputs, attributes, dtype=inputs[0].dtype, shape=shape, version=1
    )
