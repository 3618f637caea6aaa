"""Attention of BEV queries to cameras in plain PyTorch: its meaning, and its kernel elsewhere.

Clarity comes first here: one camera, one sampling point and one corner at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dcnv4_mm.ops._bilinear import accumulation_dtype, corners, gather
from dcnv4_mm.ops.flash_deform_attn.layout import pack, unpack

__all__ = ["bev_cross_attn_backward_reference", "bev_cross_attn_forward_reference"]


class _Point(NamedTuple):
    """One point of every head of every query in one camera, and its level."""

    y: Tensor  # row and column in pixels of the level, -1 where no camera looks: (B, Q, G)
    x: Tensor
    camera: int
    level: int
    number: int  # among the points of its level
    height: int
    width: int
    pixels: slice  # of the level in the axis of all pixels


def _sampling_points(
    offsets: Tensor, reference_points: Tensor, bev_mask: Tensor, level_sizes: list[int]
) -> Iterator[_Point]:
    for camera in range(bev_mask.shape[1]):
        # [B, Q, 1]: the same for all heads.
        hit = bev_mask[:, camera].unsqueeze(-1)
        start = 0
        sizes = zip(level_sizes[::2], level_sizes[1::2], strict=True)
        for level, (height, width) in enumerate(sizes):
            pixels = slice(start, start + height * width)
            start = pixels.stop
            for p in range(offsets.shape[-2]):
                pillar = reference_points[:, camera, :, p % reference_points.shape[3]].unsqueeze(-2)
                x = pillar[..., 0] * width + offsets[..., level, p, 0] - 0.5
                y = pillar[..., 1] * height + offsets[..., level, p, 1] - 0.5
                x, y = torch.where(hit, x, -1.0), torch.where(hit, y, -1.0)
                yield _Point(y, x, camera, level, p, height, width, pixels)


def bev_cross_attn_forward_reference(
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    level_sizes: list[int],
    num_points: int,
) -> Tensor:
    """Computes what the raw operator ``dcnv4_mm::bev_cross_attn_forward`` does, on any device.

    Args:
        value: (batch, num_cameras, num_keys, num_heads, head_dims), floating point.
        offsets_logits: (batch, num_queries, num_heads, 3 * num_levels * num_points): offsets (x, y)
            in pixels of the level and logits, in the layout of
            :mod:`dcnv4_mm.ops.flash_deform_attn.layout`.
        reference_points: (batch, num_cameras, num_queries, num_pillar_points, 2), float64 beside a
            float64 ``value``, otherwise float32: where the points (x, y) of a query's pillar lie in
            the cameras' images, 0 to 1.
        bev_mask: (batch, num_cameras, num_queries), bool: whether a camera sees a query.
        level_sizes: [H_0, W_0, H_1, W_1, ...] of each camera.
        num_points: Number of points per level. Point p goes out from point p mod num_pillar_points
            of the pillar.

    Returns:
        (batch, num_queries, num_heads * head_dims), contiguous, in the dtype of ``value``: the mean
        over the cameras that see a query, or 0 if none does.
    """
    pixels = value.to(accumulation_dtype(value.dtype))
    offsets, _, weights = _weights(value, offsets_logits, bev_mask, level_sizes, num_points)
    output = pixels.new_zeros(*offsets.shape[:3], value.shape[-1])
    for point in _sampling_points(offsets, reference_points, bev_mask, level_sizes):
        image = pixels[:, point.camera, point.pixels]
        point_weight = weights[..., point.level, point.number]
        for corner in corners(point.y, point.x, point.height, point.width):
            # The weight is left out where it does not count, so that one that is not finite gives
            # no derivative either.
            weight = corner.weight * torch.where(corner.valid, point_weight, 0.0)
            output = output + weight.unsqueeze(-1) * gather(image, corner)
    return output.flatten(-2).to(value.dtype)


def bev_cross_attn_backward_reference(
    grad_output: Tensor,
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    level_sizes: list[int],
    num_points: int,
    deterministic: bool = True,
    need_value_grad: bool = True,
    need_points_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    """Computes the gradients as ``dcnv4_mm::bev_cross_attn_backward`` does, on any device.

    The bilinear weights have the one-sided derivative of ``floor``: towards the larger coordinate.

    ``grad_output`` is the gradient of the output; the arguments from ``value`` to ``num_points``
    are those of :func:`bev_cross_attn_forward_reference`. ``deterministic`` is ignored:
    ``scatter_add_`` follows torch's own global setting. ``reference_points`` have no gradient.

    Returns:
        Gradients of ``value`` and ``offsets_logits`` in their shapes and dtypes; one that is not
        needed is an empty tensor of shape (0,).
    """
    pixels = value.to(accumulation_dtype(value.dtype))
    offsets, softmaxed, weights = _weights(value, offsets_logits, bev_mask, level_sizes, num_points)
    # [B, Q, G, D]
    grad = grad_output.to(pixels.dtype).unflatten(-1, value.shape[3:])
    grad_value = torch.zeros_like(pixels)
    grad_offsets, grad_weights = torch.zeros_like(offsets), torch.zeros_like(weights)
    for point in _sampling_points(offsets, reference_points, bev_mask, level_sizes):
        image = pixels[:, point.camera, point.pixels]
        point_weight = weights[..., point.level, point.number]
        for corner in corners(point.y, point.x, point.height, point.width):
            if need_value_grad:
                weight = torch.where(corner.valid, corner.weight * point_weight, 0.0)
                index = corner.pixel.unsqueeze(-1).expand_as(grad)
                grad_image = grad_value[:, point.camera, point.pixels]
                grad_image.scatter_add_(1, index, weight.unsqueeze(-1) * grad)
            if need_points_grad:
                # [B, Q, G]: the gradient of the output times this pixel.
                dot = (gather(image, corner) * grad).sum(-1)
                weighted = torch.where(corner.valid, point_weight * dot, 0.0)
                by_offset = torch.stack([corner.weight_dx, corner.weight_dy], dim=-1)
                by_offset = weighted.unsqueeze(-1) * by_offset
                grad_offsets[..., point.level, point.number, :] += by_offset
                by_weight = torch.where(corner.valid, dot * corner.weight, 0.0)
                grad_weights[..., point.level, point.number] += by_weight
    if not need_value_grad:
        grad_value = pixels.new_empty(0)
    if not need_points_grad:
        return grad_value.to(value.dtype), offsets_logits.new_empty(0)
    # A change of one logit changes the weights of all points, those outside the image too.
    common = (softmaxed * grad_weights).sum((-2, -1), keepdim=True)
    seen = bev_mask.any(1)[..., None, None, None]
    grad_logits = torch.where(seen, weights * (grad_weights - common), 0.0)
    grad_points = pack(grad_offsets, grad_logits).to(offsets_logits.dtype)
    return grad_value.to(value.dtype), grad_points


def _weights(
    value: Tensor, offsets_logits: Tensor, bev_mask: Tensor, level_sizes: list[int], num_points: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets and softmaxed logits, unpacked, and the latter divided by the number of cameras."""
    levels = len(level_sizes) // 2
    wide = offsets_logits.to(accumulation_dtype(value.dtype))
    offsets, logits = unpack(wide, levels, num_points)
    softmaxed = logits.flatten(-2).softmax(-1).unflatten(-1, (levels, num_points))
    counts = bev_mask.sum(1).clamp(min=1)
    return offsets, softmaxed, softmaxed / counts[..., None, None, None]
