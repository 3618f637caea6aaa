"""Multi-scale deformable attention as standard PyTorch operators, for exported models."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dcnv4_mm.ops.flash_deform_attn.layout import unpack

__all__ = ["flash_deform_attn_forward_portable", "ms_deform_attn_forward_portable"]


def ms_deform_attn_forward_portable(
    value: Tensor, locations: Tensor, weights: Tensor, level_sizes: list[int]
) -> Tensor:
    """Computes the attention by one ``grid_sample`` of all points of a level.

    Args:
        value: Features of all levels (N, S, G, D).
        locations: Sampling locations (N, Q, G, L, P, 2) as fractions of the image; finite.
        weights: Attention weights (N, Q, G, L, P).
        level_sizes: H and W of each level, flattened.

    Returns:
        (N, Q, G * D), contiguous, in the dtype of ``value``.
    """
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    dtype = torch.promote_types(value.dtype, torch.float32)
    # [N, G, D, S], and from edge to edge -1 to 1 [N, G, Q, L, P, 2]
    images = value.to(dtype).permute(0, 2, 3, 1)
    locations = 2 * locations.to(dtype).permute(0, 2, 1, 3, 4, 5) - 1
    samples, start = [], 0
    for level, (height, width) in enumerate(zip(level_sizes[::2], level_sizes[1::2], strict=True)):
        image = images[..., start : start + height * width].unflatten(-1, (height, width))
        grid = locations[:, :, :, level].flatten(0, 1)
        # [N * G, D, Q, P]
        samples.append(
            grid_sample(image.flatten(0, 1), grid, padding_mode="zeros", align_corners=False)
        )
        start = start + height * width
    # [N * G, 1, Q, L * P]
    weights = weights.to(dtype).flatten(-2).permute(0, 2, 1, 3).flatten(0, 1).unsqueeze(1)
    sums = (torch.cat(samples, -1) * weights).sum(-1).view(batch, heads, channels, queries)
    return sums.permute(0, 3, 1, 2).flatten(2).to(value.dtype).contiguous()


def flash_deform_attn_forward_portable(
    value: Tensor, locations_logits: Tensor, level_sizes: list[int], num_points: int
) -> Tensor:
    """The same, with the softmax over levels and points inside.

    Args:
        value: Features of all levels (N, S, G, D).
        locations_logits: (N, Q, G, 3 * L * P), in the layout of
            :func:`~dcnv4_mm.ops.functional.flash_deform_attn`; every location must be finite.
        level_sizes: H and W of each level, flattened.
        num_points: Points P per level.

    Returns:
        (N, Q, G * D), contiguous, in the dtype of ``value``.
    """
    levels = len(level_sizes) // 2
    wide = locations_logits.to(torch.promote_types(value.dtype, torch.float32))
    locations, logits = unpack(wide, levels, num_points)
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, (levels, num_points))
    return ms_deform_attn_forward_portable(value, locations, weights, level_sizes)
