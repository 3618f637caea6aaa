"""The public attention functions: checks, autocast and differentiation around the raw operators."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcnv4_mm.ops._autocast import autocast_dtype
from dcnv4_mm.ops._checks import check_floating, checked_by_kernels
from dcnv4_mm.ops._extension import load_library
from dcnv4_mm.ops.arguments import read_int
from dcnv4_mm.ops.flash_deform_attn import flops  # noqa: F401  (registers the formulas)
from dcnv4_mm.ops.flash_deform_attn.layout import (
    check_spatial_shapes,
    num_pixels,
    read_spatial_shapes,
)
from dcnv4_mm.ops.flash_deform_attn.registration import RAW_OPERATORS

__all__ = ["flash_deform_attn", "ms_deform_attn"]

for _device_type in ("cpu", "cuda"):
    load_library(_device_type)


def flash_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    locations_logits: Tensor,
    *,
    num_points: int,
) -> Tensor:
    """Multi-scale deformable attention with the softmax of the attention weights built in.

    Every head of a query samples ``num_points`` locations on each level and sums the samples,
    weighted by the softmax of the logits over all locations of all levels. A point on or beyond
    half a pixel outside its level contributes nothing and has no location gradient, and neither has
    one whose location is not finite; it keeps its weight in the softmax.

    All four floating-point types work, on every device; softmax and sums are float32 (float64
    for float64). Under autocast ``value`` is cast to the autocast type, float32 locations and
    logits stay as they are.

    Args:
        value: (batch, num_keys, num_heads, head_dims) float64, float32, float16 or bfloat16, any
            strides: the pixels of all levels one after the other.
        spatial_shapes: (H, W) for every level, or a (num_levels, 2) integer tensor. A tensor on a
            GPU is read once per call, which waits for the device; pairs of ints avoid that.
        locations_logits: (batch, num_queries, num_heads, 3 * num_levels * num_points) in the dtype
            of ``value``, or float32 beside a 16-bit ``value``; the layout is that of
            :mod:`dcnv4_mm.ops.flash_deform_attn.layout`. Locations are in units of the level, 0 to
            1 from edge to edge.
        num_points: Number of points per level.

    Returns:
        (batch, num_queries, num_heads * head_dims), contiguous, in the dtype of ``value`` (under
        autocast, the autocast type).

    Raises:
        TypeError: A dtype is not supported or does not fit the other.
        ValueError: A shape, a device or an argument does not fit; the message says what does.

    Note:
        Differentiable with respect to both tensors; see docs/ops.md for second derivatives,
        forward mode and ``torch.func``.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section 3.2. Other than there,
        any number of levels, points and channels works.

    Example:
        >>> value = torch.randn(2, 8 * 8 + 4 * 4, 4, 16)
        >>> locations_logits = torch.rand(2, 100, 4, 3 * 2 * 8)  # 2 levels * 8 points * 3
        >>> flash_deform_attn(value, [(8, 8), (4, 4)], locations_logits, num_points=8).shape
        torch.Size([2, 100, 64])
    """
    level_sizes = _level_sizes(spatial_shapes)
    num_points = read_int("num_points", num_points, minimum=1)
    if checked_by_kernels(value, locations_logits):
        try:
            operator = RAW_OPERATORS["flash_deform_attn", "default"]
            return operator.eager(value, locations_logits, level_sizes, num_points)
        except RuntimeError:
            pass  # The checks below say why; if they find nothing, the call below raises again.
    _check_value(value, level_sizes)
    per_head = 3 * len(spatial_shapes) * num_points
    axes = "(N, Q, G, 3 * L * P)"
    _check_points("locations_logits", locations_logits, axes, value, (per_head,))
    return _attend("flash_deform_attn", (level_sizes, num_points), value, locations_logits)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention with attention weights that are used as they are.

    The same as :func:`flash_deform_attn` but for the weights, which need not sum to one.

    Args:
        value: (batch, num_keys, num_heads, head_dims) float64, float32, float16 or bfloat16, any
            strides: the pixels of all levels one after the other.
        spatial_shapes: (H, W) for every level, or a (num_levels, 2) integer tensor. A tensor on a
            GPU is read once per call, which waits for the device; pairs of ints avoid that.
        sampling_locations: (batch, num_queries, num_heads, num_levels, num_points, 2) in the dtype
            of ``value``, or float32 beside a 16-bit ``value``: locations (x, y) in units of the
            level, 0 to 1 from edge to edge.
        attention_weights: (batch, num_queries, num_heads, num_levels, num_points), likewise. If one
            of the two is float32, both are used as float32.

    Returns:
        (batch, num_queries, num_heads * head_dims), contiguous, in the dtype of ``value`` (under
        autocast, the autocast type).

    Raises:
        TypeError: A dtype is not supported or does not fit the others.
        ValueError: A shape or a device does not fit; the message says what does.

    Note:
        Differentiable with respect to all three tensors; see docs/ops.md for second derivatives,
        forward mode and ``torch.func``.

    Source:
        Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection",
        ICLR 2021, equation (3) without the projections.

    Example:
        >>> value = torch.randn(2, 8 * 8 + 4 * 4, 4, 16)
        >>> locations = torch.rand(2, 100, 4, 2, 8, 2)
        >>> weights = torch.rand(2, 100, 4, 2, 8)
        >>> ms_deform_attn(value, [(8, 8), (4, 4)], locations, weights).shape
        torch.Size([2, 100, 64])
    """
    level_sizes = _level_sizes(spatial_shapes)
    if checked_by_kernels(value, sampling_locations, attention_weights):
        try:
            operator = RAW_OPERATORS["ms_deform_attn", "default"]
            return operator.eager(value, sampling_locations, attention_weights, level_sizes)
        except RuntimeError:
            pass  # The checks below say why; if they find nothing, the call below raises again.
    _check_value(value, level_sizes)
    check_floating("sampling_locations", sampling_locations)
    levels = len(spatial_shapes)
    points = sampling_locations.shape[4] if sampling_locations.dim() == 6 else 0
    axes = "(N, Q, G, L, P, 2)"
    _check_points("sampling_locations", sampling_locations, axes, value, (levels, points, 2))
    axes = "(N, Q, G, L, P)"
    _check_points("attention_weights", attention_weights, axes, value, (levels, points))
    if points < 1:
        raise ValueError("sampling_locations must have at least one point per level, got none")
    if sampling_locations.shape[1] != attention_weights.shape[1]:
        raise ValueError(
            "sampling_locations and attention_weights must have the same number of queries, got "
            f"{sampling_locations.shape[1]} and {attention_weights.shape[1]}"
        )
    return _attend("ms_deform_attn", (level_sizes,), value, sampling_locations, attention_weights)


def _level_sizes(spatial_shapes: Sequence[tuple[int, int]] | Tensor) -> list[int] | Tensor:
    """Sizes for a raw operator: ints, or a tensor that it reads when a compiled graph runs."""
    # torch 2.10 says that it is exporting whenever Dynamo traces, under torch.compile too.
    exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    if isinstance(spatial_shapes, Tensor) and torch.compiler.is_compiling() and not exporting:
        check_spatial_shapes(spatial_shapes)
        return spatial_shapes
    return read_spatial_shapes(spatial_shapes)


def _attend(name: str, geometry: tuple[Any, ...], value: Tensor, *points: Tensor) -> Tensor:
    """Brings the tensors to dtypes that the raw operator takes, and calls it."""
    autocast = autocast_dtype(value)
    if autocast is not None:
        value = value.to(autocast)
    accepted = {value.dtype}
    if value.dtype.itemsize == 2:
        accepted |= {torch.float32, torch.float16, torch.bfloat16} if autocast else {torch.float32}
    for tensor in points:
        if tensor.dtype not in accepted:
            raise TypeError(
                "locations and weights must have the dtype of value, or float32 beside a 16-bit "
                f"value, got {tensor.dtype} beside {value.dtype}: convert one with .to()"
            )
    if any(tensor.dtype != value.dtype for tensor in points):
        points = tuple(tensor.float() for tensor in points)
    overload = "tensor" if isinstance(geometry[0], Tensor) else "default"
    return RAW_OPERATORS[name, overload](value, *points, *geometry)


def _check_value(value: Tensor, level_sizes: list[int] | Tensor) -> None:
    check_floating("value", value)
    if value.dim() != 4:
        raise ValueError(
            f"value must have four axes (N, S, G, D), got the shape {tuple(value.shape)}"
        )
    _, pixels, heads, channels = value.shape
    if heads < 1 or channels < 1:
        raise ValueError(f"value must have at least one head and channel, got {heads}, {channels}")
    if not isinstance(level_sizes, Tensor) and pixels != num_pixels(level_sizes):
        sizes = list(zip(level_sizes[::2], level_sizes[1::2], strict=True))
        raise ValueError(
            f"value must have one row for every pixel of the levels {sizes}, "
            f"{num_pixels(level_sizes)} rows, got {pixels}"
        )


def _check_points(
    name: str, points: Tensor, axes: str, value: Tensor, per_head: tuple[int, ...]
) -> None:
    """Checks a tensor of shape (N, Q, G, *per_head)."""
    check_floating(name, points)
    if points.dim() != 3 + len(per_head):
        raise ValueError(f"{name} must have the axes {axes}, got the shape {tuple(points.shape)}")
    batch, _, heads, _ = value.shape
    queries = points.shape[1]
    if tuple(points.shape) != (batch, queries, heads, *per_head):
        raise ValueError(
            f"{name} must have the shape {axes} = {(batch, queries, heads, *per_head)}, got "
            f"{tuple(points.shape)}"
        )
    if points.device != value.device:
        raise ValueError(
            f"value and {name} must be on one device, got {value.device} and {points.device}: "
            "move one with .to()"
        )
