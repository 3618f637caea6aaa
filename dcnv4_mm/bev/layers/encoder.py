"""The encoder: from the cameras' feature maps of one frame to its BEV features."""

from collections.abc import Sequence

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcnv4_mm.bev.geometry import bev_cell_centers, pillar_points, project_points
from dcnv4_mm.bev.layers.attention import (
    SpatialCrossAttention,
    TemporalSelfAttention,
)

__all__ = ["BEVEncoder", "BEVEncoderLayer"]

_Shape = tuple[int, int]

# Queries per chunk of a layer in inference on a CPU: larger tensors would be allocated anew by the
# system, page by page, and would be read from memory instead of a cache.
_CPU_QUERIES = 10000


def _saves_memory(tensor: Tensor) -> bool:
    # A traced graph serves batches of every size.
    plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and tensor.device.type == "cpu"


class BEVEncoderLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention and FFN, each followed by its norm.

    Args:
        embed_dims: Number of channels C.
        feedforward_channels: Hidden channels of the FFN.
        num_heads: Number of heads of both attentions.
        num_levels: Number of feature levels.
        num_points: Points per level of the cross-attention.
        dropout: Dropout ratio of both attentions and the FFN.
    """

    def __init__(
        self,
        embed_dims: int,
        *,
        feedforward_channels: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                TemporalSelfAttention(embed_dims, num_heads=num_heads, dropout=dropout),
                SpatialCrossAttention(
                    embed_dims,
                    num_heads=num_heads,
                    num_levels=num_levels,
                    num_points=num_points,
                    dropout=dropout,
                ),
            ]
        )
        self.ffns = nn.ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        bev_queries: Tensor,
        bev_pos: tuple[Tensor, Tensor],
        reference_points: Tensor,
        bev_shape: _Shape,
        features: Tensor,
        spatial_shapes: Sequence[_Shape],
        reference_points_cam: Tensor,
        bev_mask: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """Applies the layer.

        Args:
            bev_queries: (batch, num_queries, embed_dims).
            bev_pos: Positional encodings of the columns, (W, C / 2), and rows, (H, C / 2).
            reference_points: (Q, 2), the cells' centres as fractions of the grid.
            bev_shape: (H, W) of the grid.
            features: The cameras' feature maps, level after level, (batch, num_cameras, num_keys,
                embed_dims).
            spatial_shapes: (H, W) of each level.
            reference_points_cam: The pillar points in the images, (batch, num_cameras, num_queries,
                num_pillar_points, 2).
            bev_mask: Whether a camera sees a query, (batch, num_cameras, num_queries).
            out: A buffer like ``features`` for their projection, in inference.

        Returns:
            (batch, num_queries, embed_dims).
        """
        self_attn, cross_attn = self.attentions
        bev_value = self_attn.project_value(bev_queries)
        camera_value = cross_attn.project_value(features, out=out)
        height, width = bev_shape
        columns, rows = bev_pos

        def attend(first: int, end: int) -> Tensor:
            """The queries of some rows of the grid."""
            part = slice(first * width, end * width)
            x = self_attn(
                bev_queries[:, part],
                bev_pos=(columns, rows[first:end]),
                reference_points=reference_points[part],
                value=bev_value,
                bev_shape=bev_shape,
            )
            x = cross_attn(
                self.norms[0](x),
                value=camera_value,
                spatial_shapes=spatial_shapes,
                reference_points_cam=reference_points_cam[:, :, part],
                bev_mask=bev_mask[:, :, part],
            )
            return self.norms[2](self.ffns[0](self.norms[1](x)))

        if not _saves_memory(bev_queries):
            return attend(0, height)
        count = max(1, _CPU_QUERIES // (len(bev_queries) * width))
        return torch.cat([attend(i, i + count) for i in range(0, height, count)], dim=1)


class BEVEncoder(nn.Module):
    """Turns learned BEV queries and the cameras' feature maps into BEV features.

    Args:
        embed_dims: Number of channels C.
        bev_shape: (H, W) cells of the BEV grid.
        point_cloud_range: x, y, z of the lower corner, then of the upper one, in metres.
        num_layers: Number of layers.
        num_pillar_points: Points D of the pillar above a cell.
        feedforward_channels: Hidden channels of the FFNs.
        num_heads: Number of heads.
        num_levels: Number of feature levels.
        num_points: Points per level, a multiple of ``num_pillar_points``.
        dropout: Dropout ratio.
        with_cp: Activation checkpointing of each layer.

    Raises:
        ValueError: ``num_points`` is not a multiple of ``num_pillar_points``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        *,
        bev_shape: _Shape = (200, 200),
        point_cloud_range: Sequence[float],
        num_layers: int = 6,
        num_pillar_points: int = 4,
        feedforward_channels: int = 512,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        dropout: float = 0.1,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        if num_points % num_pillar_points:
            raise ValueError(
                f"num_points must be a multiple of num_pillar_points={num_pillar_points}, got "
                f"{num_points}"
            )
        self.bev_shape = bev_shape
        self.point_cloud_range = tuple(point_cloud_range)
        self.num_pillar_points = num_pillar_points
        self.with_cp = with_cp
        self.layers = nn.ModuleList(
            BEVEncoderLayer(
                embed_dims,
                feedforward_channels=feedforward_channels,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def project_pillars(self, lidar_to_image: Tensor, image_size: _Shape) -> tuple[Tensor, Tensor]:
        """Projects the cells' pillar points into the images.

        Args:
            lidar_to_image: (batch, num_cameras, 4, 4).
            image_size: Padded (H, W) of the images.

        Returns:
            Reference points (batch, num_cameras, num_queries, num_pillar_points, 2) as fractions of
            the image, and whether they lie in it, (batch, num_cameras, num_queries,
            num_pillar_points).
        """
        points = pillar_points(
            self.bev_shape, self.num_pillar_points, self.point_cloud_range, lidar_to_image.device
        )
        reference_points_cam, inside = project_points(
            points.flatten(0, 1), lidar_to_image, image_size
        )
        pillars = (-1, self.num_pillar_points)
        return reference_points_cam.unflatten(2, pillars), inside.unflatten(2, pillars)

    def forward(
        self,
        bev_queries: Tensor,
        *,
        bev_pos: tuple[Tensor, Tensor],
        features: Tensor,
        spatial_shapes: Sequence[_Shape],
        lidar_to_image: Tensor,
        image_size: _Shape,
    ) -> Tensor:
        """Encodes one frame.

        Args:
            bev_queries: (batch, num_queries, embed_dims).
            bev_pos: Positional encodings of the grid's columns, (W, C / 2), and rows, (H, C / 2);
                that of a cell is the concatenation of its column's and its row's.
            features: The cameras' feature maps, level after level, (batch, num_cameras, num_keys,
                embed_dims).
            spatial_shapes: (H, W) of each level.
            lidar_to_image: (batch, num_cameras, 4, 4), from the LiDAR frame of the BEV grid to
                pixels.
            image_size: Padded (H, W) of the images.

        Returns:
            (batch, num_queries, embed_dims).
        """
        reference_points_cam, inside = self.project_pillars(lidar_to_image, image_size)
        # A camera sees a query if any point of its pillar lies in the image.
        bev_mask = inside.any(-1)
        reference_points = bev_cell_centers(self.bev_shape, bev_queries.device)
        inputs = (bev_pos, reference_points, self.bev_shape, features, spatial_shapes)
        inputs += (reference_points_cam, bev_mask)
        if _saves_memory(bev_queries) and not torch.is_autocast_enabled("cpu"):
            inputs += (features.new_empty(features.shape),)
        for layer in self.layers:
            if self.with_cp and torch.is_grad_enabled():
                bev_queries = checkpoint(layer, bev_queries, *inputs, use_reentrant=False)
            else:
                bev_queries = layer(bev_queries, *inputs)
        return bev_queries
