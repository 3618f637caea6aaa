"""Multi-scale deformable attention by standard operators, for exported models."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dcnv4_mm.ops._bilinear import accumulation_dtype
from dcnv4_mm.ops.flash_deform_attn.layout import unpack

__all__ = ["flash_deform_attn_forward_portable", "ms_deform_attn_forward_portable"]


def ms_deform_attn_forward_portable(
    value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]
) -> Tensor:
    """Computes the attention by one ``grid_sample`` of all points of a level.

    Args:
        value: As in
            :func:`~dcnv4_mm.ops.flash_deform_attn.reference.ms_deform_attn_forward_reference`;
            so are the others.
        locations: See there; every location must be finite.
        weights: See there.
        level_sizes: See there.

    Returns:
        (N, Q, G * D), contiguous, in the dtype of ``value``.
    """
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    dtype = accumulation_dtype(value.dtype)
    # [N, G, D, S] and, from edge to edge, -1 to 1: [N, G, Q, L, P, 2]
    images = value.to(dtype).permute(0, 2, 3, 1)
    places = 2 * locations.to(dtype).permute(0, 2, 1, 3, 4, 5) - 1
    samples, start = [], 0
    for level, (height, width) in enumerate(zip(level_sizes[::2], level_sizes[1::2], strict=True)):
        image = images[..., start : start + height * width].unflatten(-1, (height, width))
        grid = places[:, :, :, level].flatten(0, 1)
        # [N * G, D, Q, P]
        samples.append(
            grid_sample(image.flatten(0, 1), grid, padding_mode="zeros", align_corners=False)
        )
        start = start + height * width
    # [N * G, 1, Q, L * P]
    shares = weights.to(dtype).flatten(-2).permute(0, 2, 1, 3).flatten(0, 1).unsqueeze(1)
    sums = (torch.cat(samples, -1) * shares).sum(-1).view(batch, heads, channels, queries)
    return sums.permute(0, 3, 1, 2).flatten(2).to(value.dtype).contiguous()


def flash_deform_attn_forward_portable(
    value: Tensor, locations_logits: Tensor, level_sizes: list[int], num_points: int
) -> Tensor:
    """The same with the softmax of :func:`~dcnv4_mm.ops.functional.flash_deform_attn`.

    Args:
        value: As in
            :func:`~dcnv4_mm.ops.flash_deform_attn.reference.flash_deform_attn_forward_reference`;
            so are the others.
        locations_logits: See there; every location must be finite.
        level_sizes: See there.
        num_points: See there.

    Returns:
        (N, Q, G * D), contiguous, in the dtype of ``value``.
    """
    levels = len(level_sizes) // 2
    wide = locations_logits.to(accumulation_dtype(value.dtype))
    locations, logits = unpack(wide, levels, num_points)
    shares = logits.flatten(-2).softmax(-1).unflatten(-1, (levels, num_points))
    return ms_deform_attn_forward_portable(value, locations, shares, level_sizes)
