"""The deformable attentions of BEVFormer: temporal self-attention and spatial cross-attention of
the BEV queries, and cross-attention of object queries to the BEV features.

The parameter names are those of the released checkpoints.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcnv4_mm.ops.flash_deform_attn.layout import unpack
from dcnv4_mm.ops.functional import bev_cross_attn, ms_deform_attn

__all__ = [
    "DeformableSampling",
    "ObjectCrossAttention",
    "SpatialCrossAttention",
    "TemporalSelfAttention",
]

_Shapes = Sequence[tuple[int, int]]


class DeformableSampling(nn.Module):
    """Sampling offsets, attention weights and value projection of a deformable attention.

    Args:
        embed_dims: Number of channels C of the values.
        query_dims: Number of channels of a query.
        num_heads: Number of heads G, a divisor of ``embed_dims``.
        num_maps: Number of maps R that a query samples: levels, or entries of the BEV queue.
        num_points: Sampling points P per map.

    Raises:
        ValueError: The heads do not divide the channels.
    """

    def __init__(
        self, embed_dims: int, *, query_dims: int, num_heads: int, num_maps: int, num_points: int
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f"num_heads must divide embed_dims={embed_dims}, got {num_heads}")
        self.num_heads, self.num_maps, self.num_points = num_heads, num_maps, num_points
        samples = num_heads * num_maps * num_points
        self.sampling_offsets = nn.Linear(query_dims, samples * 2)
        self.attention_weights = nn.Linear(query_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Grid initialization of the offsets as in Deformable DETR; zero attention weights.

        Head i points into the direction 2 pi i / G, its p-th point p pixels away, on every map.
        """
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions /= directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        # [G, R, P, 2]
        offsets = directions[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_maps, -1, -1).flatten())
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.zeros_(self.value_proj.bias)

    def packed_linear(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one linear layer that predicts offsets and logits, ordered by head."""
        linears = (self.sampling_offsets, self.attention_weights)
        weight, bias = (
            torch.cat(
                [getattr(linear, name).unflatten(0, (self.num_heads, -1)) for linear in linears],
                dim=1,
            ).flatten(0, 1)
            for name in ("weight", "bias")
        )
        return weight, bias

    def predict_packed(self, query: Tensor) -> Tensor:
        """Offsets in pixels, then logits, of every head and query."""
        return F.linear(query, *self.packed_linear()).unflatten(-1, (self.num_heads, -1))

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (..., G, R, P, 2) in pixels and logits (..., G, R, P), both views."""
        return unpack(packed, self.num_maps, self.num_points)

    def project_value(self, value: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Projects (..., S, C) and splits it into heads, (..., S, G, C / G).

        Without gradients the result may be written into the contiguous ``out``, (..., S, C).
        """
        if out is None:
            out = self.value_proj(value)
        else:
            weight, bias = self.value_proj.weight, self.value_proj.bias
            torch.addmm(bias, value.flatten(0, -2), weight.t(), out=out.view(-1, out.shape[-1]))
        return out.unflatten(-1, (self.num_heads, -1))


def _sampling_locations(
    reference_points: Tensor, offsets: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Adds offsets (..., 1, P, 2) in pixels to reference points (..., 2), with broadcasting."""
    # In float32 at least, whatever autocast made of the offsets.
    dtype = torch.promote_types(reference_points.dtype, offsets.dtype)
    points = offsets.shape[-2]
    # Filled on the device: a tensor of Python numbers would be copied there, and waited for.
    per_pixel = [offsets.new_full((points,), 1 / size, dtype=dtype) for size in shape[::-1]]
    # A flat last dim, not pairs: a sum over broadcast pairs takes four times as long.
    locations = torch.addcmul(
        torch.cat([reference_points.to(dtype)] * points, dim=-1),
        offsets.to(dtype).flatten(-3),
        torch.stack(per_pixel, dim=-1).flatten(),
    )
    return locations.unflatten(-1, (1, points, 2))


class TemporalSelfAttention(DeformableSampling):
    """Deformable self-attention of the BEV queries: the temporal one of BEVFormer without history.

    The original samples a queue of two maps, which without a history are the same one: here the
    two are sampled as one map with twice the points and half the weights.

    Args:
        embed_dims: Number of channels C.
        num_heads: Number of heads.
        num_points: Points per entry of the queue.
        dropout: Dropout ratio of the output.

    Source:
        Li et al., "BEVFormer", ECCV 2022, section 3.4.
    """

    num_queues = 2

    def __init__(
        self, embed_dims: int, *, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(
            embed_dims,
            query_dims=self.num_queues * embed_dims,
            num_heads=num_heads,
            num_maps=self.num_queues,
            num_points=num_points,
        )
        self.output_proj = _output_proj(embed_dims)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        bev_queries: Tensor,
        *,
        bev_pos: tuple[Tensor, Tensor],
        reference_points: Tensor,
        value: Tensor,
        bev_shape: tuple[int, int],
    ) -> Tensor:
        """Applies the layer, with its residual connection.

        Args:
            bev_queries: (batch, num_queries, embed_dims), all rows of the BEV grid or some.
            bev_pos: Positional encodings of the columns, (W, C / 2), and of these rows,
                (Q / W, C / 2); that of a cell is the concatenation of its column's and its row's.
            reference_points: (Q, 2), the cells' centres as fractions of the grid.
            value: The projected values of all cells, from :meth:`project_value`.
            bev_shape: (H, W) of the grid.

        Returns:
            (batch, num_queries, embed_dims).
        """
        # The query is the concatenation (bev_queries, bev_queries + bev_pos), never materialized.
        weight, bias = self.packed_linear()
        weight_plain, weight_with_pos = weight.chunk(2, dim=1)
        columns, rows = map(F.linear, bev_pos, weight_with_pos.chunk(2, dim=1))
        shift = (rows.unsqueeze(1) + columns).flatten(0, 1)
        packed = F.linear(bev_queries, weight_plain + weight_with_pos, bias) + shift
        offsets, logits = self.unpack(packed.unflatten(-1, (self.num_heads, -1)))
        # Over a short axis a softmax is fast where the axis is not the last one in memory.
        weights = logits.movedim(-1, 0).softmax(0).movedim(0, -1) / self.num_queues
        # The entries of the queue become points of one map: [B, Q, G, 1, 2 * P, ...].
        locations = _sampling_locations(
            reference_points[:, None], offsets.flatten(3, 4).unsqueeze(3), bev_shape
        )
        weights = weights.flatten(3, 4).unsqueeze(3)
        output = ms_deform_attn(value, [bev_shape], locations, weights)
        return bev_queries + self.dropout(self.output_proj(output))


class SpatialCrossAttention(nn.Module):
    """Deformable attention of BEV queries to the cameras that see them.

    Offsets and weights depend on the query alone, so they are predicted once, not per camera. The
    operator :func:`bev_cross_attn` does the rest, without sampling locations, attention weights or
    index lists of the visible queries in memory.

    Args:
        embed_dims: Number of channels C.
        num_heads: Number of heads.
        num_levels: Number of levels L of the cameras' pyramids.
        num_points: Points per level, a multiple of the pillar's.
        dropout: Dropout ratio of the output.

    Source:
        Li et al., "BEVFormer", ECCV 2022, section 3.3. Where one point of a pillar lies inside an
        image, the others are sampled too, as zeros where they lie outside.
    """

    def __init__(
        self,
        embed_dims: int,
        *,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.deformable_attention = DeformableSampling(
            embed_dims,
            query_dims=embed_dims,
            num_heads=num_heads,
            num_maps=num_levels,
            num_points=num_points,
        )
        self.output_proj = _output_proj(embed_dims)
        self.dropout = nn.Dropout(dropout)

    def project_value(self, value: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Projects the cameras' maps (batch, num_cameras, num_keys, embed_dims)."""
        return self.deformable_attention.project_value(value, out=out)

    def forward(
        self,
        bev_queries: Tensor,
        *,
        value: Tensor,
        spatial_shapes: _Shapes,
        reference_points_cam: Tensor,
        bev_mask: Tensor,
    ) -> Tensor:
        """Applies the layer, with its residual connection.

        Args:
            bev_queries: (batch, num_queries, embed_dims).
            value: The projected feature maps, from :meth:`project_value`.
            spatial_shapes: (H, W) of each level.
            reference_points_cam: The queries' pillar points as fractions of the images, (batch,
                num_cameras, num_queries, num_pillar_points, 2). Those of a visible query may lie
                outside too.
            bev_mask: Whether a camera sees a query, (batch, num_cameras, num_queries).

        Returns:
            (batch, num_queries, embed_dims).
        """
        sampling = self.deformable_attention
        output = bev_cross_attn(
            value,
            spatial_shapes,
            sampling.predict_packed(bev_queries),
            reference_points_cam,
            bev_mask,
            num_points=sampling.num_points,
        )
        return bev_queries + self.dropout(self.output_proj(output))


class ObjectCrossAttention(DeformableSampling):
    """Deformable cross-attention of object queries to the BEV features.

    Args:
        embed_dims: Number of channels C.
        num_heads: Number of heads.
        num_points: Points per head.
        dropout: Dropout ratio of the output.
    """

    def __init__(
        self, embed_dims: int, *, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(
            embed_dims,
            query_dims=embed_dims,
            num_heads=num_heads,
            num_maps=1,
            num_points=num_points,
        )
        self.output_proj = _output_proj(embed_dims)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        *,
        query_pos: Tensor,
        reference_points: Tensor,
        value: Tensor,
        bev_shape: tuple[int, int],
    ) -> Tensor:
        """Applies the layer, with its residual connection.

        Args:
            query: (batch, num_queries, embed_dims).
            query_pos: Positional embedding, (batch, num_queries, embed_dims).
            reference_points: (batch, num_queries, 2), as fractions of the BEV grid.
            value: BEV features, (B, H * W, C).
            bev_shape: (H, W) of the grid.

        Returns:
            (batch, num_queries, embed_dims).
        """
        offsets, logits = self.unpack(self.predict_packed(query + query_pos))
        locations = _sampling_locations(reference_points[:, :, None], offsets, bev_shape)
        value = self.project_value(value)
        output = ms_deform_attn(value, [bev_shape], locations, logits.softmax(-1))
        return query + self.dropout(self.output_proj(output))


def _output_proj(embed_dims: int) -> nn.Linear:
    linear = nn.Linear(embed_dims, embed_dims)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
