"""A plain encoder, step by step as in its paper: the oracle of tests and benchmarks.

Nothing is hoisted or merged: the two maps of the queue are sampled one by one, every layer finds
the visible queries anew, the queries of each camera are padded to the longest list and predict
their sampling points per camera, and the sampling is torch's grid_sample.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dcnv4_mm.bev.geometry import bev_cell_centers
from dcnv4_mm.bev.layers.attention import SpatialCrossAttention, TemporalSelfAttention
from dcnv4_mm.bev.layers.encoder import BEVEncoder

__all__ = ["cell_encodings", "encode"]

_Shapes = Sequence[tuple[int, int]]


def encode(
    encoder: BEVEncoder,
    bev_queries: Tensor,
    *,
    bev_pos: tuple[Tensor, Tensor],
    features: Tensor,
    spatial_shapes: _Shapes,
    lidar_to_image: Tensor,
    image_size: tuple[int, int],
) -> Tensor:
    """The output of ``encoder.eval()(...)``, with the same arguments as its ``forward``."""
    reference_points_cam, inside = encoder.project_pillars(lidar_to_image, image_size)
    centers = bev_cell_centers(encoder.bev_shape, bev_queries.device)
    pos = cell_encodings(*bev_pos)
    x = bev_queries
    for layer in encoder.layers:
        self_attn, cross_attn = layer.attentions
        x = layer.norms[0](_self_attention(self_attn, x, pos, centers, encoder.bev_shape))
        x = layer.norms[1](
            _cross_attention(cross_attn, x, features, spatial_shapes, reference_points_cam, inside)
        )
        x = layer.norms[2](layer.ffns[0](x))
    return x


def cell_encodings(columns: Tensor, rows: Tensor) -> Tensor:
    """Positional encodings (H * W, C) of columns (W, C / 2) and rows (H, C / 2)."""
    repeated = columns.repeat(len(rows), 1), rows.repeat_interleave(len(columns), 0)
    return torch.cat(repeated, dim=-1)


def _self_attention(
    attention: TemporalSelfAttention,
    bev_queries: Tensor,
    bev_pos: Tensor,
    centers: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    query = torch.cat((bev_queries, bev_queries + bev_pos), dim=-1)
    outputs = []
    for entry in range(attention.num_queues):
        offsets = attention.sampling_offsets(query).unflatten(
            -1, (attention.num_heads, attention.num_queues, 1, attention.num_points, 2)
        )[:, :, :, entry]
        logits = attention.attention_weights(query).unflatten(
            -1, (attention.num_heads, attention.num_queues, 1, attention.num_points)
        )[:, :, :, entry]
        locations = centers[:, None, None, None] + offsets / offsets.new_tensor(shape[::-1])
        outputs.append(_sample(attention.project_value(bev_queries), [shape], locations, logits))
    return bev_queries + attention.output_proj(torch.stack(outputs).mean(0))


def _cross_attention(
    attention: SpatialCrossAttention,
    bev_queries: Tensor,
    features: Tensor,
    spatial_shapes: _Shapes,
    reference_points_cam: Tensor,
    inside: Tensor,
) -> Tensor:
    sampling = attention.deformable_attention
    bev_mask = inside.any(-1)
    length = int(bev_mask.sum(-1).max())
    batch, cameras = bev_mask.shape[:2]
    # [B, N, length, ...], the tail of each list left at zero
    channels, pillar = bev_queries.shape[-1], reference_points_cam.shape[3:]
    queries = bev_queries.new_zeros(batch, cameras, length, channels)
    points = reference_points_cam.new_zeros(batch, cameras, length, *pillar)
    for sample in range(batch):
        for camera in range(cameras):
            seen = bev_mask[sample, camera].nonzero()[:, 0]
            queries[sample, camera, : len(seen)] = bev_queries[sample, seen]
            points[sample, camera, : len(seen)] = reference_points_cam[sample, camera, seen]
    queries, points = queries.flatten(0, 1), points.flatten(0, 1)
    heads = (sampling.num_heads, sampling.num_maps, sampling.num_points)
    offsets = sampling.sampling_offsets(queries).unflatten(-1, (*heads, 2))
    logits = sampling.attention_weights(queries).unflatten(-1, heads)
    per_level = offsets.new_tensor([shape[::-1] for shape in spatial_shapes])
    points = points.repeat(1, 1, sampling.num_points // points.shape[2], 1)
    locations = points[:, :, None, None] + offsets / per_level[:, None]
    output = _sample(
        sampling.project_value(features).flatten(0, 1), spatial_shapes, locations, logits
    )
    output = output.unflatten(0, (batch, cameras))
    slots = torch.zeros_like(bev_queries)
    for sample in range(batch):
        for camera in range(cameras):
            seen = bev_mask[sample, camera].nonzero()[:, 0]
            slots[sample, seen] += output[sample, camera, : len(seen)]
    return bev_queries + attention.output_proj(slots / bev_mask.sum(1).clamp(min=1).unsqueeze(-1))


def _sample(value: Tensor, shapes: _Shapes, locations: Tensor, logits: Tensor) -> Tensor:
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    # [B, G, D, Q, P] by level
    sampled = []
    sizes = [height * width for height, width in shapes]
    for level, pixels in enumerate(value.split(sizes, dim=1)):
        maps = pixels.permute(0, 2, 3, 1).unflatten(-1, shapes[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2)
        found = [F.grid_sample(*pair, align_corners=False) for pair in zip(maps, grid, strict=True)]
        sampled.append(torch.stack(found) * weights[:, :, :, level].transpose(1, 2).unsqueeze(2))
    return sum(sampled).sum(-1).permute(0, 3, 1, 2).flatten(2)
