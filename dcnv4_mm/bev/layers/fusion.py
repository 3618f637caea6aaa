"""Temporal fusion of the BEV features of several frames."""

import torch
from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock
from torch import Tensor, nn

__all__ = ["TemporalFusion", "fill_missing"]


class TemporalFusion(nn.Module):
    """Concatenates the BEV features of all frames along the channels; three residual blocks.

    Args:
        embed_dims: Number of channels C of a frame's BEV features.
        num_frames: Number of frames T.
        inter_channels: Channels of the blocks; as many as go in, T * C, by default.
        norm_cfg: Norm of the blocks.
        with_cp: Activation checkpointing of each block.

    Source:
        Yang et al., "BEVFormer v2", CVPR 2023, section 3.4.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        *,
        num_frames: int,
        inter_channels: int | None = None,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        norm_cfg = norm_cfg or dict(type="SyncBN")
        self.num_frames = num_frames
        channels = num_frames * embed_dims
        inter_channels = inter_channels or channels
        shortcut = None
        if inter_channels != channels:
            shortcut = nn.Sequential(
                nn.Conv2d(channels, inter_channels, 3, padding=1, bias=False),
                build_norm_layer(norm_cfg, inter_channels)[1],
            )
        blocks = [BasicBlock(channels, inter_channels, downsample=shortcut, norm_cfg=norm_cfg)]
        blocks += [BasicBlock(inter_channels, inter_channels, norm_cfg=norm_cfg) for _ in range(2)]
        for block in blocks:
            block.with_cp = with_cp
        self.layers = nn.Sequential(*blocks)
        self.layer_norm = nn.Sequential(
            nn.Linear(inter_channels, embed_dims), nn.LayerNorm(embed_dims)
        )

    def forward(self, bevs: Tensor, shape: tuple[int, int]) -> Tensor:
        """Fuses BEV features (batch, num_frames, num_queries, embed_dims) on a grid (H, W)."""
        maps = bevs.transpose(2, 3).flatten(1, 2).unflatten(-1, shape)
        fused = self.layers(maps).flatten(2).transpose(1, 2)
        return self.layer_norm(fused)


def fill_missing(bevs: Tensor, valid: Tensor, current: int) -> Tensor:
    """Replaces a missing frame by its neighbour towards the current one, detached.

    Args:
        bevs: (batch, num_frames, num_queries, embed_dims), in the order of time.
        valid: (B, T), which frames exist.
        current: Index of the current frame.

    Returns:
        (batch, num_frames, num_queries, embed_dims).
    """
    filled = list(bevs.unbind(1))
    for step, indices in ((1, range(current - 1, -1, -1)), (-1, range(current + 1, len(filled)))):
        for index in indices:
            exists = valid[:, index, None, None]
            filled[index] = torch.where(exists, filled[index], filled[index + step]).detach()
    return torch.stack(filled, dim=1)
