"""Deformable attention of BEV queries: to the BEV itself, to the cameras, of objects to the BEV.

The parameter names are those of the released checkpoints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcnv4_mm.ops.flash_deform_attn.layout import unpack
from dcnv4_mm.ops.functional import bev_cross_attn, ms_deform_attn

__all__ = [
    "BEVCrossAttention",
    "BEVSelfAttention",
    "CameraHits",
    "DeformableSampling",
    "SpatialCrossAttention",
    "find_hits",
]

_Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class CameraHits:
    """Which BEV queries each camera sees, and where in its picture.

    Attributes:
        seen: Whether a camera sees a query, (B, N, Q).
        references: Where the queries' pillar points lie, as fractions of the picture,
            (B, N, Q, D, 2). Those of a query that is seen may lie outside too.
    """

    seen: Tensor
    references: Tensor

    def of(self, queries: slice) -> "CameraHits":
        """Those of some queries."""
        return CameraHits(self.seen[:, :, queries], self.references[:, :, queries])


def find_hits(references: Tensor, inside: Tensor) -> CameraHits:
    """Finds the queries that each camera sees: those with any pillar point in its picture.

    Args:
        references: (B, N, Q, D, 2), positions of pillar points as fractions of the picture.
        inside: (B, N, Q, D), whether a point is in the picture.
    """
    return CameraHits(inside.any(-1), references)


class DeformableSampling(nn.Module):
    """Predicts sampling points and weights of queries, and projects the maps they sample.

    Args:
        embed_dims: Number of channels C of the maps.
        query_dims: Number of channels of a query.
        num_heads: Number of heads G, a divisor of ``embed_dims``.
        num_maps: How many maps R a query samples: levels, or entries of a queue.
        num_points: Points P per map.

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
        """Each head looks into a direction of its own, each point one step further; all alike."""
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
        """Weight and bias of both predictions in one product, its rows sorted by heads."""
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
        """Offsets in pixels, then logits, of every head of queries: (B, Q, G, 3 * R * P)."""
        return F.linear(query, *self.packed_linear()).unflatten(-1, (self.num_heads, -1))

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (..., G, R, P, 2) in pixels and logits (..., G, R, P), both views."""
        return unpack(packed, self.num_maps, self.num_points)

    def value(self, maps: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Maps (..., S, C), projected and split into heads, (..., S, G, C / G).

        Without gradients they may be put into the contiguous ``out``, (..., S, C).
        """
        if out is None:
            out = self.value_proj(maps)
        else:
            weight, bias = self.value_proj.weight, self.value_proj.bias
            torch.addmm(bias, maps.flatten(0, -2), weight.t(), out=out.view(-1, out.shape[-1]))
        return out.unflatten(-1, (self.num_heads, -1))


def _locations(references: Tensor, offsets: Tensor, shapes: _Shapes) -> Tensor:
    """Adds offsets (..., R, P, 2) in pixels to references (..., 2) that broadcast with them."""
    # In float32 at least, whatever autocast made of the offsets.
    dtype = torch.promote_types(references.dtype, offsets.dtype)
    maps, points = offsets.shape[-3:-1]
    per_pixel = [[1 / width, 1 / height] * points for height, width in shapes]
    # In rows of numbers, not pairs: a sum over broadcast pairs takes four times as long.
    locations = torch.addcmul(
        torch.cat([references.to(dtype)] * (maps * points), dim=-1),
        offsets.to(dtype).flatten(-3),
        torch.tensor(per_pixel, dtype=dtype, device=offsets.device).flatten(),
    )
    return locations.unflatten(-1, (maps, points, 2))


class BEVSelfAttention(DeformableSampling):
    """Deformable self-attention of the BEV, the original's temporal one without a history.

    The original samples a queue of two maps, which without a history are the same one: here the
    two are sampled as one map with twice the points and half the weights.

    Args:
        embed_dims: Number of channels C.
        num_heads: Number of heads.
        num_points: Points per entry of the queue.
        dropout: Share of the output that is dropped in training.

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
        bev: Tensor,
        *,
        position: tuple[Tensor, Tensor],
        references: Tensor,
        value: Tensor,
        shape: tuple[int, int],
    ) -> Tensor:
        """Applies the layer, with its residual connection.

        Args:
            bev: (B, Q, C), all rows of the grid's cells or some.
            position: Positional encodings of the columns, (W, C / 2), and of these rows,
                (Q / W, C / 2); a cell has that of its column, then that of its row.
            references: (Q, 2), the cells' centres as fractions of the grid.
            value: What :meth:`value` makes of all cells.
            shape: (H, W) of the grid.

        Returns:
            (B, Q, C).
        """
        # The query is bev beside bev + position, which need not be in memory.
        weight, bias = self.packed_linear()
        of_bev, of_sum = weight.chunk(2, dim=1)
        of_columns, of_rows = map(F.linear, position, of_sum.chunk(2, dim=1))
        shift = (of_rows.unsqueeze(1) + of_columns).flatten(0, 1)
        packed = F.linear(bev, of_bev + of_sum, bias) + shift
        offsets, logits = self.unpack(packed.unflatten(-1, (self.num_heads, -1)))
        # Over a short axis a softmax is fast where the axis is not the last one in memory.
        weights = logits.movedim(-1, 0).softmax(0).movedim(0, -1) / self.num_queues
        # The entries of the queue become points of one map: [B, Q, G, 1, 2 * P, ...].
        locations = _locations(references[:, None], offsets.flatten(3, 4).unsqueeze(3), [shape])
        weights = weights.flatten(3, 4).unsqueeze(3)
        output = ms_deform_attn(value, [shape], locations, weights)
        return bev + self.dropout(self.output_proj(output))


class SpatialCrossAttention(nn.Module):
    """Deformable attention of BEV queries to the cameras that see them.

    Offsets and weights depend on the query alone, so they are predicted once, not per camera. One
    operator then does the rest: no sampling locations, no weights and no list of hits in memory.

    Args:
        embed_dims: Number of channels C.
        num_heads: Number of heads.
        num_levels: Number of levels L of the cameras' pyramids.
        num_points: Points per level, a multiple of the pillar's.
        dropout: Share of the output that is dropped in training.

    Source:
        Li et al., "BEVFormer", ECCV 2022, section 3.3. The points of a pillar that lie outside of
        a picture are sampled too, as zeros, as soon as one of them lies inside.
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

    def value(self, maps: Tensor, *, out: Tensor | None = None) -> Tensor:
        """The cameras' pyramids, level after level, (B, N, S, C), as :meth:`forward` takes them."""
        return self.deformable_attention.value(maps, out=out)

    def forward(self, bev: Tensor, *, value: Tensor, shapes: _Shapes, hits: CameraHits) -> Tensor:
        """Applies the layer, with its residual connection.

        Args:
            bev: (B, Q, C).
            value: What :meth:`value` makes of the cameras' pyramids.
            shapes: (H, W) of each level.
            hits: Which queries each camera sees.

        Returns:
            (B, Q, C).
        """
        sampling = self.deformable_attention
        output = bev_cross_attn(
            value,
            shapes,
            sampling.predict_packed(bev),
            hits.references,
            hits.seen,
            num_points=sampling.num_points,
        )
        return bev + self.dropout(self.output_proj(output))


class BEVCrossAttention(DeformableSampling):
    """Deformable attention of object queries to the BEV.

    Args:
        embed_dims: Number of channels C.
        num_heads: Number of heads.
        num_points: Points per head.
        dropout: Share of the output that is dropped in training.
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
        position: Tensor,
        references: Tensor,
        bev: Tensor,
        shape: tuple[int, int],
    ) -> Tensor:
        """Applies the layer, with its residual connection.

        Args:
            query: (B, Q, C).
            position: Positional embedding, (B, Q, C).
            references: (B, Q, 2), where the objects are, as fractions of the grid.
            bev: (B, H * W, C).
            shape: (H, W) of the grid.

        Returns:
            (B, Q, C).
        """
        offsets, logits = self.unpack(self.predict_packed(query + position))
        locations = _locations(references[:, :, None], offsets, [shape])
        output = ms_deform_attn(self.value(bev), [shape], locations, logits.softmax(-1))
        return query + self.dropout(self.output_proj(output))


def _output_proj(embed_dims: int) -> nn.Linear:
    linear = nn.Linear(embed_dims, embed_dims)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
