"""BEV cross-attention as standard PyTorch operators, for exported models."""

import torch
from torch import Tensor

from dcnv4_mm.export._deform_attn import ms_deform_attn_forward_portable
from dcnv4_mm.ops.flash_deform_attn.layout import unpack

__all__ = ["bev_cross_attn_forward_portable"]


def bev_cross_attn_forward_portable(
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    level_sizes: list[int],
    num_points: int,
) -> Tensor:
    """Attends from every query to every camera, and masks the cameras that do not see it.

    Args:
        value: Features of all cameras and levels (B, N, S, G, D).
        offsets_logits: Offsets and logits (B, Q, G, 3 * L * P), in the layout of the operator;
            every offset must be finite.
        reference_points: Reference points (B, N, Q, Z, 2) as fractions of the image; finite where a
            camera sees the query.
        bev_mask: Whether a camera sees a query (B, N, Q), bool.
        level_sizes: H and W of each level, flattened.
        num_points: Points P per level.

    Returns:
        (B, Q, G * D), contiguous, in the dtype of ``value``.
    """
    levels = len(level_sizes) // 2
    dtype = torch.promote_types(value.dtype, torch.float32)
    offsets, logits = unpack(offsets_logits.to(dtype), levels, num_points)
    softmax = logits.flatten(-2).softmax(-1).unflatten(-1, (levels, num_points))
    # [B, N, Q, P, 2]: point p belongs to reference point p % Z.
    order = torch.arange(num_points, device=reference_points.device) % reference_points.shape[3]
    pillars = torch.where(bev_mask[..., None, None], reference_points.to(dtype), 0.0)[
        :, :, :, order
    ]
    # [L, 1, 2] of (W, H)
    sizes = zip(level_sizes[1::2], level_sizes[::2], strict=True)
    scale = torch.stack([torch.stack([offsets.new_full((), s) for s in size]) for size in sizes])
    # [B, N, Q, G, L, P, 2]
    locations = pillars[:, :, :, None, None] + (offsets / scale[:, None])[:, None]
    counts = bev_mask.sum(1, keepdim=True).clamp(min=1)
    weights = softmax[:, None] * (bev_mask.to(dtype) / counts)[..., None, None, None]
    outputs = ms_deform_attn_forward_portable(
        value.to(dtype).flatten(0, 1), locations.flatten(0, 1), weights.flatten(0, 1), level_sizes
    )
    return outputs.unflatten(0, bev_mask.shape[:2]).sum(1).to(value.dtype)
