"""Multi-scale deformable attention in plain PyTorch: its meaning, and its kernel where no other is.

Clarity comes first here: one sampling point and one corner at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dcnv4_mm.ops._bilinear import accumulation_dtype, corners, gather
from dcnv4_mm.ops.flash_deform_attn.layout import pack, unpack

__all__ = [
    "flash_deform_attn_backward_reference",
    "flash_deform_attn_forward_reference",
    "ms_deform_attn_backward_reference",
    "ms_deform_attn_forward_reference",
]


class _Point(NamedTuple):
    """One point of every head of every query, and its level."""

    y: Tensor  # row and column in pixels of the level, and the weight: (N, Q, G)
    x: Tensor
    weight: Tensor
    height: int
    width: int
    pixels: slice  # of the level in the axis of all pixels


def _sampling_points(
    locations: Tensor, weights: Tensor, level_sizes: list[int]
) -> Iterator[_Point]:
    start = 0
    for level, (height, width) in enumerate(zip(level_sizes[::2], level_sizes[1::2], strict=True)):
        pixels = slice(start, start + height * width)
        for p in range(weights.shape[-1]):
            x, y = locations[..., level, p, :].unbind(-1)
            weight = weights[..., level, p]
            yield _Point(y * height - 0.5, x * width - 0.5, weight, height, width, pixels)
        start = pixels.stop


def ms_deform_attn_forward_reference(
    value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]
) -> Tensor:
    """Computes what the raw operator ``dcnv4_mm::ms_deform_attn_forward`` does, on any device.

    Args:
        value: (batch, num_keys, num_heads, head_dims), floating point.
        locations: (batch, num_queries, num_heads, num_levels, num_points, 2) in the layout of
            :mod:`dcnv4_mm.ops.flash_deform_attn.layout`.
        weights: (batch, num_queries, num_heads, num_levels, num_points), used as they are.
        level_sizes: [H_0, W_0, H_1, W_1, ...].

    Returns:
        (batch, num_queries, num_heads * head_dims), contiguous, in the dtype of ``value``.

    Source:
        Zhu et al., "Deformable DETR", ICLR 2021, equation (3) without projections.
    """
    dtype = accumulation_dtype(value.dtype)
    pixels = value.to(dtype)
    output = pixels.new_zeros(*locations.shape[:3], value.shape[-1])
    for point in _sampling_points(locations.to(dtype), weights.to(dtype), level_sizes):
        for corner in corners(point.y, point.x, point.height, point.width):
            # The weight is left out where it does not count, so that one that is not finite gives
            # no derivative either.
            weight = corner.weight * torch.where(corner.valid, point.weight, 0.0)
            output = output + weight.unsqueeze(-1) * gather(pixels[:, point.pixels], corner)
    return output.flatten(-2).to(value.dtype)


def ms_deform_attn_backward_reference(
    grad_output: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    level_sizes: list[int],
    deterministic: bool = True,
    need_value_grad: bool = True,
    need_points_grad: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients as ``dcnv4_mm::ms_deform_attn_backward`` does, on any device.

    The bilinear weights have the one-sided derivative of ``floor``: towards the larger coordinate.

    ``grad_output`` is the gradient of the output; the arguments from ``value`` to ``level_sizes``
    are those of :func:`ms_deform_attn_forward_reference`. ``deterministic`` is ignored:
    ``scatter_add_`` follows torch's own global setting.

    Returns:
        Gradients of ``value``, ``locations`` and ``weights`` in their shapes and dtypes; those
        that are not needed (``need_points_grad``: the last two) are empty tensors of shape (0,).
    """
    dtype = accumulation_dtype(value.dtype)
    pixels = value.to(dtype)
    # [N, Q, G, D]
    grad = grad_output.to(dtype).unflatten(-1, value.shape[2:])
    grad_value = torch.zeros_like(pixels)
    grad_locations, grad_weights = [], []
    for point in _sampling_points(locations.to(dtype), weights.to(dtype), level_sizes):
        grad_y, grad_x, grad_weight = (torch.zeros_like(point.y) for _ in range(3))
        for corner in corners(point.y, point.x, point.height, point.width):
            if need_value_grad:
                weight = torch.where(corner.valid, corner.weight * point.weight, 0.0)
                index = corner.pixel.unsqueeze(-1).expand_as(grad)
                grad_value[:, point.pixels].scatter_add_(1, index, weight.unsqueeze(-1) * grad)
            if need_points_grad:
                # [N, Q, G]: the gradient of the output times this pixel.
                dot = (gather(pixels[:, point.pixels], corner) * grad).sum(-1)
                weighted = torch.where(corner.valid, point.weight * dot, 0.0)
                grad_y = grad_y + weighted * corner.weight_dy * point.height
                grad_x = grad_x + weighted * corner.weight_dx * point.width
                grad_weight = grad_weight + torch.where(corner.valid, dot * corner.weight, 0.0)
        grad_locations.append(torch.stack([grad_x, grad_y], dim=-1))
        grad_weights.append(grad_weight)
    if not need_value_grad:
        grad_value = pixels.new_empty(0)
    if not need_points_grad:
        return grad_value.to(value.dtype), locations.new_empty(0), weights.new_empty(0)
    return (
        grad_value.to(value.dtype),
        torch.stack(grad_locations, dim=-2).reshape(locations.shape).to(locations.dtype),
        torch.stack(grad_weights, dim=-1).reshape(weights.shape).to(weights.dtype),
    )


def flash_deform_attn_forward_reference(
    value: Tensor, locations_logits: Tensor, level_sizes: list[int], num_points: int
) -> Tensor:
    """Computes what the raw operator ``dcnv4_mm::flash_deform_attn_forward`` does.

    Args:
        value: (batch, num_keys, num_heads, head_dims), floating point.
        locations_logits: (batch, num_queries, num_heads, 3 * num_levels * num_points) in the layout
            of :mod:`dcnv4_mm.ops.flash_deform_attn.layout`.
        level_sizes: [H_0, W_0, H_1, W_1, ...].
        num_points: Number of points per level.

    Returns:
        (batch, num_queries, num_heads * head_dims), contiguous, in the dtype of ``value``.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section 3.2.
    """
    locations, weights = _softmaxed(value, locations_logits, level_sizes, num_points)
    return ms_deform_attn_forward_reference(value, locations, weights, level_sizes)


def flash_deform_attn_backward_reference(
    grad_output: Tensor,
    value: Tensor,
    locations_logits: Tensor,
    level_sizes: list[int],
    num_points: int,
    deterministic: bool = True,
    need_value_grad: bool = True,
    need_points_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    """Computes the gradients as ``dcnv4_mm::flash_deform_attn_backward`` does, on any device.

    As :func:`ms_deform_attn_backward_reference`, with the arguments of
    :func:`flash_deform_attn_forward_reference`.

    Returns:
        Gradients of ``value`` and ``locations_logits`` in their shapes and dtypes; one that is
        not needed is an empty tensor of shape (0,).
    """
    locations, weights = _softmaxed(value, locations_logits, level_sizes, num_points)
    grad_value, grad_locations, grad_weights = ms_deform_attn_backward_reference(
        grad_output,
        value,
        locations,
        weights,
        level_sizes,
        deterministic,
        need_value_grad,
        need_points_grad,
    )
    if not need_points_grad:
        return grad_value, locations_logits.new_empty(0)
    # A change of one logit changes the weights of all points, those outside the image too.
    common = (weights * grad_weights).sum((-2, -1), keepdim=True)
    grad_logits = weights * (grad_weights - common)
    return grad_value, pack(grad_locations, grad_logits).to(locations_logits.dtype)


def _softmaxed(
    value: Tensor, locations_logits: Tensor, level_sizes: list[int], num_points: int
) -> tuple[Tensor, Tensor]:
    """Locations and softmaxed logits, unpacked, in the wide dtype."""
    levels = len(level_sizes) // 2
    wide = locations_logits.to(accumulation_dtype(value.dtype))
    locations, logits = unpack(wide, levels, num_points)
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, (levels, num_points))
    return locations, weights
