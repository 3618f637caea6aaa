"""Encoder, temporal fusion and decoder with the embeddings that they share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcnv4_mm.bev.geometry import warp_bev
from dcnv4_mm.bev.layers.attention import DeformableSampling
from dcnv4_mm.bev.layers.decoder import ObjectDecoder
from dcnv4_mm.bev.layers.encoder import BEVEncoder
from dcnv4_mm.bev.layers.fusion import TemporalFusion, fill_missing

__all__ = ["BEVTransformer"]


class BEVTransformer(nn.Module):
    """From the cameras' feature maps to decoded object queries.

    Args:
        encoder: Arguments of :class:`BEVEncoder`.
        decoder: Arguments of :class:`ObjectDecoder`.
        fusion: Arguments of :class:`TemporalFusion`; ``None`` for one frame.
        embed_dims: Number of channels C.
        num_cameras: Number of cameras N.
        num_levels: Number of feature levels.
    """

    def __init__(
        self,
        *,
        encoder: dict,
        decoder: dict,
        fusion: dict | None = None,
        embed_dims: int = 256,
        num_cameras: int = 6,
        num_levels: int = 4,
    ) -> None:
        super().__init__()
        self.level_embeds = nn.Parameter(torch.zeros(num_levels, embed_dims))
        self.cams_embeds = nn.Parameter(torch.zeros(num_cameras, embed_dims))
        self.encoder = BEVEncoder(embed_dims, num_levels=num_levels, **encoder)
        self.decoder = ObjectDecoder(embed_dims, **decoder)
        self.reference_points = nn.Linear(embed_dims, 3)
        self.fusion = TemporalFusion(embed_dims, **fusion) if fusion else None

    def reset_parameters(self) -> None:
        """Xavier initialization of matrices, then the deformable attentions' own."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(self.reference_points.bias)
        for module in self.modules():
            if isinstance(module, DeformableSampling):
                module.reset_parameters()

    def encode(
        self,
        features: Sequence[Tensor],
        lidar_to_image: Tensor,
        image_size: tuple[int, int],
        *,
        bev_queries: Tensor,
        bev_pos: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Encodes the BEV features of one frame.

        Args:
            features: The cameras' feature maps by level, (batch, num_cameras, channels, h, w).
            lidar_to_image: (batch, num_cameras, 4, 4), from the BEV's LiDAR frame to pixels.
            image_size: Padded (H, W) of the images.
            bev_queries: (Q, C).
            bev_pos: Positional encodings of the grid's columns, (W, C / 2), and rows, (H, C / 2).

        Returns:
            (batch, num_queries, embed_dims).

        Raises:
            ValueError: The model has another number of cameras.
        """
        cameras, expected = features[0].shape[1], len(self.cams_embeds)
        if cameras != expected:
            raise ValueError(
                f"expected images of {expected} cameras, as the model's num_cameras, got {cameras}"
            )
        batch = lidar_to_image.shape[0]
        # [B, N, h * w, C] by level.
        maps = [
            level.flatten(3).transpose(2, 3) + self.cams_embeds[:, None] + embedding
            for level, embedding in zip(features, self.level_embeds, strict=True)
        ]
        return self.encoder(
            bev_queries.expand(batch, -1, -1),
            bev_pos=bev_pos,
            features=torch.cat(maps, dim=2),
            spatial_shapes=[(level.shape[-2], level.shape[-1]) for level in features],
            lidar_to_image=lidar_to_image,
            image_size=image_size,
        )

    def align(
        self, bevs: Tensor, bev_augmentation: Tensor | None = None, motion: Tensor | None = None
    ) -> Tensor:
        """Warps encoded BEV features into another LiDAR frame, then as the objects.

        Args:
            bevs: (batch, num_queries, embed_dims).
            bev_augmentation: (B, 3, 3), the transform applied to the objects.
            motion: (B, 4, 4), from the LiDAR frame of the BEV grid to the one to warp it into.

        Returns:
            (batch, num_queries, embed_dims).
        """
        if bev_augmentation is None and motion is None:
            return bevs
        grid = bevs.transpose(1, 2).unflatten(2, self.encoder.bev_shape)
        if motion is not None:
            half_extent = self.encoder.point_cloud_range[3]
            grid = warp_bev(grid, motion[:, :3, :3], motion[:, :2, 3] / half_extent)
        if bev_augmentation is not None:
            grid = warp_bev(grid, bev_augmentation)
        return grid.flatten(2).transpose(1, 2)

    def fuse(self, bevs: Tensor, valid: Tensor, current: int) -> Tensor:
        """Fuses the BEV features of all frames; ``valid`` (batch, num_frames) says which exist.

        Raises:
            ValueError: The model has another number of frames.
        """
        frames, expected = bevs.shape[1], self.fusion.num_frames if self.fusion else 1
        if frames != expected:
            raise ValueError(
                f"expected {expected} frames, as fusion.num_frames of the BEV head, got {frames} "
                "from the dataset"
            )
        if self.fusion is None:
            return bevs[:, current]
        return self.fusion(fill_missing(bevs, valid, current), self.encoder.bev_shape)

    def decode(
        self,
        bev_embed: Tensor,
        queries: Tensor,
        *,
        num_groups: int,
        reg_branches: nn.ModuleList,
        reference_points: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decodes object queries from fused BEV features.

        Args:
            bev_embed: (B, H * W, C).
            queries: Positional embedding and content of each query, (G * Q, 2 * C) or
                (B, G * Q, 2 * C).
            num_groups: Groups G.
            reg_branches: As in :class:`ObjectDecoder`.
            reference_points: (B, G * Q, 3), initial reference points as fractions of the range;
                NaN for the learned ones.

        Returns:
            As :class:`ObjectDecoder` returns.
        """
        # Contiguous: torch's decomposition of matmul compares strides. The 2 * C of a chunk would
        # equal B * C for two example samples, and an exported graph would serve no other batch.
        parts = queries.expand(bev_embed.shape[0], -1, -1).chunk(2, dim=-1)
        query_pos, content = (part.contiguous() for part in parts)
        learned = self.reference_points(query_pos).float().sigmoid()
        if reference_points is not None:
            learned = torch.where(reference_points.isfinite(), reference_points, learned)
        return self.decoder(
            content,
            query_pos=query_pos,
            reference_points=learned,
            bev_embed=bev_embed,
            bev_shape=self.encoder.bev_shape,
            num_groups=num_groups,
            reg_branches=reg_branches,
        )
