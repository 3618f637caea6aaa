"""BEV cross-attention by standard operators, for exported models."""

import torch
from torch import Tensor

from dcnv4_mm.ops._bilinear import accumulation_dtype
from dcnv4_mm.ops.flash_deform_attn.layout import unpack
from dcnv4_mm.ops.flash_deform_attn.portable import ms_deform_attn_forward_portable

__all__ = ["bev_cross_attn_forward_portable"]


def bev_cross_attn_forward_portable(
    value: Tensor,
    offsets_logits: Tensor,
    references: Tensor,
    hits: Tensor,
    level_sizes: list[int],
    num_points: int,
) -> Tensor:
    """Computes the attention of every query to every camera, and drops what no camera sees.

    Args:
        value: As in
            :func:`~dcnv4_mm.ops.bev_cross_attn.reference.bev_cross_attn_forward_reference`; so are
            the others.
        offsets_logits: See there; every offset must be finite.
        references: See there; those of hits must be finite.
        hits: See there.
        level_sizes: See there.
        num_points: See there.

    Returns:
        (B, Q, G * D), contiguous, in the dtype of ``value``.
    """
    levels = len(level_sizes) // 2
    dtype = accumulation_dtype(value.dtype)
    offsets, logits = unpack(offsets_logits.to(dtype), levels, num_points)
    shares = logits.flatten(-2).softmax(-1).unflatten(-1, (levels, num_points))
    # [B, N, Q, P, 2]: the points of a pillar by turns.
    order = torch.arange(num_points, device=references.device) % references.shape[3]
    pillars = torch.where(hits[..., None, None], references.to(dtype), 0.0)[:, :, :, order]
    # [L, 1, 2] of (W, H)
    sizes = zip(level_sizes[1::2], level_sizes[::2], strict=True)
    scale = torch.stack([torch.stack([offsets.new_full((), s) for s in size]) for size in sizes])
    # [B, N, Q, G, L, P, 2]
    locations = pillars[:, :, :, None, None] + (offsets / scale[:, None])[:, None]
    counts = hits.sum(1, keepdim=True).clamp(min=1)
    weights = shares[:, None] * (hits.to(dtype) / counts)[..., None, None, None]
    outputs = ms_deform_attn_forward_portable(
        value.to(dtype).flatten(0, 1), locations.flatten(0, 1), weights.flatten(0, 1), level_sizes
    )
    return outputs.unflatten(0, hits.shape[:2]).sum(1).to(value.dtype)
