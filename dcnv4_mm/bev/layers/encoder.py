"""The encoder: from the cameras' feature maps to one BEV map, for one moment."""

from collections.abc import Sequence

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcnv4_mm.bev.geometry import bev_cell_centers, pillar_points, project_points
from dcnv4_mm.bev.layers.attention import (
    BEVSelfAttention,
    CameraHits,
    SpatialCrossAttention,
    find_hits,
)

__all__ = ["BEVEncoder", "BEVEncoderLayer"]

_Shape = tuple[int, int]

# Without gradients, so many queries go through a layer at a time on a CPU: large tensors would have
# to be asked of the system anew, page by page, and would come from memory instead of a cache.
_CPU_QUERIES = 10000


def _saves_memory(tensor: Tensor) -> bool:
    # A graph that is recorded serves batches of every size.
    plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and tensor.device.type == "cpu"


class BEVEncoderLayer(nn.Module):
    """Attends to the BEV, then to the cameras, then applies a feed-forward network; norms last.

    Args:
        embed_dims: Number of channels C.
        feedforward_channels: Hidden channels of the feed-forward network.
        num_heads: Number of heads of both attentions.
        num_levels: Number of levels of the cameras' pyramids.
        num_points: Points per level of the attention to the cameras.
        dropout: Share that is dropped in training, in the three places.
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
                BEVSelfAttention(embed_dims, num_heads=num_heads, dropout=dropout),
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
        bev: Tensor,
        position: tuple[Tensor, Tensor],
        references: Tensor,
        shape: _Shape,
        maps: Tensor,
        map_shapes: Sequence[_Shape],
        hits: CameraHits,
        out: Tensor | None = None,
    ) -> Tensor:
        """Applies the layer; see the two attentions for the arguments.

        ``out`` is like ``maps``, and takes what the layer makes of them.
        """
        look_around, look_at_cameras = self.attentions
        cells, pixels = look_around.value(bev), look_at_cameras.value(maps, out=out)
        height, width = shape
        columns, rows = position

        def attend(first: int, end: int) -> Tensor:
            """The queries of some rows of the grid."""
            queries = slice(first * width, end * width)
            some = look_around(
                bev[:, queries],
                position=(columns, rows[first:end]),
                references=references[queries],
                value=cells,
                shape=shape,
            )
            some = look_at_cameras(
                self.norms[0](some), value=pixels, shapes=map_shapes, hits=hits.of(queries)
            )
            return self.norms[2](self.ffns[0](self.norms[1](some)))

        if not _saves_memory(bev):
            return attend(0, height)
        count = max(1, _CPU_QUERIES // (len(bev) * width))
        return torch.cat([attend(i, i + count) for i in range(0, height, count)], dim=1)


class BEVEncoder(nn.Module):
    """Turns learned BEV queries and the cameras' feature maps into a BEV map.

    Args:
        embed_dims: Number of channels C.
        bev_shape: (H, W) cells of the BEV grid.
        point_cloud_range: x, y, z of the lower corner, then of the upper one, in metres.
        num_layers: Number of layers.
        num_pillar_points: Points D above a cell at which the cameras are asked.
        feedforward_channels: Hidden channels of the feed-forward networks.
        num_heads: Number of heads.
        num_levels: Number of levels of the cameras' pyramids.
        num_points: Points per level, a multiple of ``num_pillar_points``.
        dropout: Share that is dropped in training.
        with_cp: Computes a layer's activations again in the backward pass instead of keeping them.

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
        """Where the cells' pillar points lie in the pictures.

        Args:
            lidar_to_image: (B, N, 4, 4).
            image_size: Padded (H, W) of the pictures.

        Returns:
            (B, N, Q, D, 2) as fractions of the picture, and whether they are in it, (B, N, Q, D).
        """
        points = pillar_points(
            self.bev_shape, self.num_pillar_points, self.point_cloud_range, lidar_to_image.device
        )
        position, inside = project_points(points.flatten(0, 1), lidar_to_image, image_size)
        pillars = (-1, self.num_pillar_points)
        return position.unflatten(2, pillars), inside.unflatten(2, pillars)

    def forward(
        self,
        bev: Tensor,
        *,
        position: tuple[Tensor, Tensor],
        maps: Tensor,
        map_shapes: Sequence[_Shape],
        lidar_to_image: Tensor,
        image_size: _Shape,
    ) -> Tensor:
        """Encodes one moment.

        Args:
            bev: BEV queries, (B, Q, C).
            position: Positional encodings of the grid's columns, (W, C / 2), and rows, (H, C / 2);
                a cell has that of its column, then that of its row.
            maps: The cameras' pyramids, level after level, (B, N, S, C).
            map_shapes: (H, W) of each level.
            lidar_to_image: (B, N, 4, 4), from the LiDAR frame that the BEV lies in to pixels.
            image_size: Padded (H, W) of the pictures.

        Returns:
            (B, Q, C).
        """
        hits = find_hits(*self.project_pillars(lidar_to_image, image_size))
        references = bev_cell_centers(self.bev_shape, bev.device)
        inputs = (position, references, self.bev_shape, maps, map_shapes, hits)
        if _saves_memory(bev) and not torch.is_autocast_enabled("cpu"):
            inputs += (maps.new_empty(maps.shape),)
        for layer in self.layers:
            if self.with_cp and torch.is_grad_enabled():
                bev = checkpoint(layer, bev, *inputs, use_reentrant=False)
            else:
                bev = layer(bev, *inputs)
        return bev
