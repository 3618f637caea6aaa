"""The stem, stages and blocks of FlashInternImage."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcnv4_mm.backbones.archs import Arch
from dcnv4_mm.layers import DCNv3, DCNv4, DropPath, channels_first

__all__ = ["MLP", "Block", "Downsample", "Stage", "Stem"]

_NORM_EPS = 1e-6


class Stem(nn.Module):
    """Two convolutions of stride 2: images (N, 3, H, W) to maps (N, H/4, W/4, C)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(channels // 2, eps=_NORM_EPS)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(channels, eps=_NORM_EPS)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(images).permute(0, 2, 3, 1)))
        return self.norm2(self.conv2(channels_first(x)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """Halves the size and doubles the channels of maps (N, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * channels, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(channels_first(x)).permute(0, 2, 3, 1))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden_channels: int, *, fc2_bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, channels, bias=fc2_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of a truncated normal distribution, biases of zero."""
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A deformable branch and an MLP branch around maps (N, H, W, C)."""

    gamma1: nn.Parameter | None
    gamma2: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        groups: int,
        arch: Arch,
        core_op: str,
        *,
        drop_path_rate: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        self.post_norm = arch.post_norm
        self.norm1 = nn.LayerNorm(channels, eps=_NORM_EPS)
        arguments: dict[str, Any] = dict(
            groups=groups,
            offset_scale=arch.offset_scale,
            dw_kernel_size=arch.dw_kernel_size,
            center_feature_scale=arch.center_feature_scale,
            remove_center=arch.remove_center,
        )
        self.dcn: nn.Module = (
            DCNv4(channels, **arguments, output_bias=arch.dcn_output_bias)
            if core_op == "DCNv4"
            else DCNv3(channels, **arguments)
        )
        self.norm2 = nn.LayerNorm(channels, eps=_NORM_EPS)
        fc2_bias = arch.mlp_fc2_bias or core_op == "DCNv3"
        self.mlp = MLP(channels, int(channels * arch.mlp_ratio), fc2_bias=fc2_bias)
        self.res_post_norm = arch.res_post_norm and not arch.post_norm and layer_scale is None
        if arch.res_post_norm:
            self.res_post_norm1 = nn.LayerNorm(channels, eps=_NORM_EPS)
            self.res_post_norm2 = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale = layer_scale
        for name in ("gamma1", "gamma2"):
            scale = None if layer_scale is None else nn.Parameter(torch.empty(channels))
            self.register_parameter(name, scale)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The block's own parameters, its layer scale; not those of its layers."""
        for scale in (self.gamma1, self.gamma2):
            if scale is not None:
                nn.init.constant_(scale, self.layer_scale)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if self.res_post_norm:
            x = x + self.drop_path(self.res_post_norm1(self.dcn(self.norm1(x))))
            return x + self.drop_path(self.res_post_norm2(self.mlp(self.norm2(x))))
        x = x + self._branch(x, self.dcn, self.norm1, self.gamma1)
        return x + self._branch(x, self.mlp, self.norm2, self.gamma2)

    def _branch(self, x: Tensor, layer: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        x = norm(layer(x)) if self.post_norm else layer(norm(x))
        return self.drop_path(x if gamma is None else gamma * x)


class Stage(nn.Module):
    """Blocks, norms where the architecture has them, and the way down to the next stage."""

    def __init__(
        self,
        blocks: Sequence[Block],
        channels: int,
        *,
        norm: bool,
        extra_norms: Sequence[int],
        down: bool,
    ) -> None:
        super().__init__()
        self.extra_norms = tuple(extra_norms)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS) if norm else nn.Identity()
        self.post_norms = nn.ModuleList(
            nn.LayerNorm(channels, eps=_NORM_EPS) for _ in self.extra_norms
        )
        self.downsample = Downsample(channels) if down else nn.Identity()

    def forward(self, x: Tensor, *, with_cp: bool) -> tuple[Tensor, Tensor]:
        """From maps (N, H, W, C), the stage's own of that shape, and the next stage's input."""
        for index, block in enumerate(self.blocks):
            if with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if index in self.extra_norms:
                x = self.post_norms[self.extra_norms.index(index)](x)
        x = self.norm(x)
        return x, self.downsample(x)
