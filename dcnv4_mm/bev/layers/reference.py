"""The encoder as its paper describes it, step by step: the oracle of tests and benchmarks.

Nothing is hoisted, merged or left out: the queue's two maps are sampled one by one, every layer
looks for the hits anew, the queries of each camera are padded to the longest list and predict
their points per camera, and the sampling is mmcv's, by grid_sample.
"""

from collections.abc import Sequence

import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from torch import Tensor

from dcnv4_mm.bev.geometry import bev_cell_centers
from dcnv4_mm.bev.layers.attention import BEVSelfAttention, SpatialCrossAttention
from dcnv4_mm.bev.layers.encoder import BEVEncoder

__all__ = ["encode", "position_of_cells"]

_Shapes = Sequence[tuple[int, int]]


def encode(
    encoder: BEVEncoder,
    bev: Tensor,
    *,
    position: tuple[Tensor, Tensor],
    maps: Tensor,
    map_shapes: _Shapes,
    lidar_to_image: Tensor,
    image_size: tuple[int, int],
) -> Tensor:
    """Does what ``encoder`` does in evaluation; for the arguments see its ``forward``."""
    references, inside = encoder.project_pillars(lidar_to_image, image_size)
    centers = bev_cell_centers(encoder.bev_shape, bev.device)
    cells = position_of_cells(*position)
    for layer in encoder.layers:
        look_around, look_at_cameras = layer.attentions
        bev = layer.norms[0](_look_around(look_around, bev, cells, centers, encoder.bev_shape))
        bev = layer.norms[1](
            _look_at_cameras(look_at_cameras, bev, maps, map_shapes, references, inside)
        )
        bev = layer.norms[2](layer.ffns[0](bev))
    return bev


def position_of_cells(columns: Tensor, rows: Tensor) -> Tensor:
    """Positional encodings (H * W, C) of columns (W, C / 2) and rows (H, C / 2)."""
    repeated = columns.repeat(len(rows), 1), rows.repeat_interleave(len(columns), 0)
    return torch.cat(repeated, dim=-1)


def _look_around(
    attention: BEVSelfAttention,
    bev: Tensor,
    position: Tensor,
    centers: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    query = torch.cat((bev, bev + position), dim=-1)
    outputs = []
    for entry in range(attention.num_queues):
        offsets = attention.sampling_offsets(query).unflatten(
            -1, (attention.num_heads, attention.num_queues, 1, attention.num_points, 2)
        )[:, :, :, entry]
        logits = attention.attention_weights(query).unflatten(
            -1, (attention.num_heads, attention.num_queues, 1, attention.num_points)
        )[:, :, :, entry]
        locations = centers[:, None, None, None] + offsets / offsets.new_tensor(shape[::-1])
        outputs.append(_sample(attention.value(bev), [shape], locations, logits))
    return bev + attention.output_proj(torch.stack(outputs).mean(0))


def _look_at_cameras(
    attention: SpatialCrossAttention,
    bev: Tensor,
    maps: Tensor,
    shapes: _Shapes,
    references: Tensor,
    inside: Tensor,
) -> Tensor:
    sampling = attention.deformable_attention
    hit = inside.any(-1)
    length = int(hit.sum(-1).max())
    batch, cameras = hit.shape[:2]
    # [B, N, length, ...], the tail of each list left at zero
    queries = bev.new_zeros(batch, cameras, length, bev.shape[-1])
    points = references.new_zeros(batch, cameras, length, *references.shape[3:])
    for sample in range(batch):
        for camera in range(cameras):
            seen = hit[sample, camera].nonzero()[:, 0]
            queries[sample, camera, : len(seen)] = bev[sample, seen]
            points[sample, camera, : len(seen)] = references[sample, camera, seen]
    queries, points = queries.flatten(0, 1), points.flatten(0, 1)
    heads = (sampling.num_heads, sampling.num_maps, sampling.num_points)
    offsets = sampling.sampling_offsets(queries).unflatten(-1, (*heads, 2))
    logits = sampling.attention_weights(queries).unflatten(-1, heads)
    per_level = offsets.new_tensor([shape[::-1] for shape in shapes])
    points = points.repeat(1, 1, sampling.num_points // points.shape[2], 1)
    locations = points[:, :, None, None] + offsets / per_level[:, None]
    output = _sample(sampling.value(maps).flatten(0, 1), shapes, locations, logits)
    output = output.unflatten(0, (batch, cameras))
    slots = torch.zeros_like(bev)
    for sample in range(batch):
        for camera in range(cameras):
            seen = hit[sample, camera].nonzero()[:, 0]
            slots[sample, seen] += output[sample, camera, : len(seen)]
    return bev + attention.output_proj(slots / hit.sum(1).clamp(min=1).unsqueeze(-1))


def _sample(value: Tensor, shapes: _Shapes, locations: Tensor, logits: Tensor) -> Tensor:
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    return multi_scale_deformable_attn_pytorch(
        value, value.new_tensor(shapes).long(), locations, weights
    )
