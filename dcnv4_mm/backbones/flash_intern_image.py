"""FlashInternImage: a convolutional pyramid whose spatial mixing is DCNv4."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dcnv4_mm.layers import DCNv4, DropPath

__all__ = ["ARCHS", "Arch", "FlashInternImage"]

_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Arch:
    """The numbers that tell one FlashInternImage from another.

    Attributes:
        channels: Channels after the stem; they double from stage to stage.
        depths: Blocks of the four stages.
        groups: DCNv4 groups of the four stages.
        offset_scale: See :class:`~dcnv4_mm.layers.DCNv4`.
        post_norm: Norms behind the branches (S, B, L), or in front of them and behind each
            stage (T).
        dw_kernel_size: See :class:`~dcnv4_mm.layers.DCNv4`.
        dcn_output_bias: Whether DCNv4's output projection has a bias.
        mlp_fc2_bias: Whether the MLP's second layer has a bias.
        mlp_ratio: Width of the MLP by that of the stage.
        center_feature_scale: See :class:`~dcnv4_mm.layers.DCNv4`.
    """

    channels: int
    depths: Sequence[int]
    groups: Sequence[int]
    offset_scale: float = 1.0
    post_norm: bool = False
    dw_kernel_size: int | None = None
    dcn_output_bias: bool = False
    mlp_fc2_bias: bool = False
    mlp_ratio: float = 4.0
    center_feature_scale: bool = False


ARCHS: Mapping[str, Arch] = {
    # Small enough to learn on two processor cores; not a model of the paper.
    "nano": Arch(channels=32, depths=(1, 1, 2, 1), groups=(2, 4, 8, 16)),
    "t": Arch(channels=64, depths=(4, 4, 18, 4), groups=(4, 8, 16, 32)),
    "s": Arch(
        channels=80,
        depths=(4, 4, 21, 4),
        groups=(5, 10, 20, 40),
        post_norm=True,
        dw_kernel_size=3,
    ),
    "b": Arch(
        channels=112,
        depths=(4, 4, 21, 4),
        groups=(7, 14, 28, 56),
        offset_scale=0.5,
        post_norm=True,
        dw_kernel_size=3,
    ),
    "l": Arch(
        channels=160,
        depths=(5, 5, 22, 5),
        groups=(10, 20, 40, 80),
        offset_scale=2.0,
        post_norm=True,
        dw_kernel_size=3,
        dcn_output_bias=True,
        mlp_fc2_bias=True,
    ),
}


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
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """Halves the size and doubles the channels of maps (N, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * channels, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden_channels: int, *, fc2_bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_channels, channels, bias=fc2_bias)
        for layer in (self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A DCNv4 branch and an MLP branch around maps (N, H, W, C)."""

    gamma1: nn.Parameter | None
    gamma2: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        groups: int,
        arch: Arch,
        *,
        drop_path_rate: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        self.post_norm = arch.post_norm
        self.norm1 = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.dcn = DCNv4(
            channels,
            groups=groups,
            offset_scale=arch.offset_scale,
            dw_kernel_size=arch.dw_kernel_size,
            center_feature_scale=arch.center_feature_scale,
            output_bias=arch.dcn_output_bias,
        )
        self.norm2 = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.mlp = MLP(channels, int(channels * arch.mlp_ratio), fc2_bias=arch.mlp_fc2_bias)
        self.drop_path = DropPath(drop_path_rate)
        for name in ("gamma1", "gamma2"):
            scale = None if layer_scale is None else torch.full((channels,), layer_scale)
            self.register_parameter(name, None if scale is None else nn.Parameter(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._branch(x, self.dcn, self.norm1, self.gamma1)
        return x + self._branch(x, self.mlp, self.norm2, self.gamma2)

    def _branch(self, x: Tensor, layer: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        x = norm(layer(x)) if self.post_norm else layer(norm(x))
        return self.drop_path(x if gamma is None else gamma * x)


class Stage(nn.Module):
    """Blocks, a norm where the architecture has one, and the way down to the next stage."""

    def __init__(self, blocks: Sequence[Block], channels: int, *, norm: bool, down: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS) if norm else nn.Identity()
        self.downsample = Downsample(channels) if down else nn.Identity()

    def forward(self, x: Tensor, *, with_cp: bool) -> tuple[Tensor, Tensor]:
        """From maps (N, H, W, C), the stage's own of that shape, and the next stage's input."""
        for block in self.blocks:
            if with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = self.norm(x)
        return x, self.downsample(x)


class ClassificationHead(nn.Module):
    """1x1 convolution, batch norm, GELU, mean over the image, linear classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        hidden_channels = int(1.5 * channels)
        self.conv = nn.Conv2d(channels, hidden_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden_channels)
        self.act = nn.GELU()
        self.fc = nn.Linear(hidden_channels, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=0.02)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to logits (N, num_classes)."""
        return self.fc(self.act(self.norm(self.conv(x))).mean((2, 3)))


class FlashInternImage(nn.Module):
    """FlashInternImage as a feature pyramid, or as a classifier if ``num_classes`` is given.

    Args:
        arch: Name in :data:`ARCHS`, or a mapping of :class:`Arch`'s fields.
        in_channels: Channels of the images.
        out_indices: Stages whose maps are put out, ascending, in 0..3.
        layer_scale: Start of the learned scale of each branch, or ``None`` for no such
            parameters. The released dense models have 1.0; as classifiers, T has none and
            S, B and L start at 1e-5.
        drop_path_rate: Rate of the last block, in [0, 1); it grows linearly from 0 at the first.
        with_cp: Recomputes each block in the backward pass, to save memory.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        num_classes: Adds the classification head; the output is then logits.

    Raises:
        ValueError: An argument is out of its range, or ``arch`` is unknown.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section 4.1. Other than in the
        original, offset layers always start at zero and ``center_feature_scale`` reaches DCNv4.

    Example:
        >>> backbone = FlashInternImage("nano")
        >>> [tuple(m.shape) for m in backbone(torch.randn(1, 3, 64, 64))]
        [(1, 32, 16, 16), (1, 64, 8, 8), (1, 128, 4, 4), (1, 256, 2, 2)]
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "t",
        *,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        layer_scale: float | None = 1.0,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        frozen_stages: int = -1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.arch = _read_arch(arch)
        stages = len(self.arch.depths)
        if not set(out_indices) <= set(range(stages)):
            raise ValueError(f"out_indices must be in 0..{stages - 1}, got {tuple(out_indices)}")
        if not -1 <= frozen_stages <= stages:
            raise ValueError(f"frozen_stages must be in -1..{stages}, got {frozen_stages}")
        self.out_indices = tuple(out_indices)
        self.with_cp = with_cp
        self.frozen_stages = frozen_stages
        self.out_channels = [self.arch.channels * 2**stage for stage in range(stages)]

        self.patch_embed = Stem(in_channels, self.arch.channels)
        # On the CPU, because a model that is built on the meta device needs the numbers as well.
        rates = torch.linspace(0, drop_path_rate, sum(self.arch.depths), device="cpu").tolist()
        next_rate = iter(rates)
        self.levels = nn.ModuleList(
            Stage(
                [
                    Block(
                        channels,
                        groups,
                        self.arch,
                        drop_path_rate=next(next_rate),
                        layer_scale=layer_scale,
                    )
                    for _ in range(depth)
                ],
                channels,
                norm=not self.arch.post_norm or self.arch.center_feature_scale,
                down=stage < stages - 1,
            )
            for stage, (channels, depth, groups) in enumerate(
                zip(self.out_channels, self.arch.depths, self.arch.groups, strict=True)
            )
        )
        self.head = (
            None if num_classes is None else ClassificationHead(self.out_channels[-1], num_classes)
        )
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Computes the maps of the chosen stages, or logits.

        Args:
            images: (N, in_channels, H, W), normalised.

        Returns:
            Contiguous maps (N, channels * 2^i, H / 2^(i + 2), W / 2^(i + 2)), sizes rounded up,
            for i in ``out_indices``; or logits (N, num_classes).
        """
        x = self.patch_embed(images)
        maps = []
        for index, stage in enumerate(self.levels):
            output, x = stage(x, with_cp=self.with_cp)
            if index in self.out_indices and self.head is None:
                # Contiguous because mmcv's RoIAlign is silently wrong on the CPU otherwise.
                maps.append(output.permute(0, 3, 1, 2).contiguous())
        if self.head is not None:
            return self.head(x.permute(0, 3, 1, 2))
        return tuple(maps)

    def train(self, mode: bool = True) -> "FlashInternImage":
        """Sets the training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.patch_embed, *self.levels[: self.frozen_stages]]
        for module in frozen:
            module.eval().requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay, as the originals count it.

        The stem is layer 0, then every block is a layer. A stage's norm and downsampling belong
        to the first block of the next stage (the last stage's norm to its own first block).

        Args:
            param_name: Name of the parameter in the model.
            prefix: What stands before this backbone's names in the model, such as ``backbone.``.

        Returns:
            The layer's number, and the number of layers including the one for heads and others.
        """
        depths = list(self.arch.depths)
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        name = param_name.removeprefix(prefix)
        if name.startswith("patch_embed."):
            return 0, num_layers
        if block := re.match(r"levels\.(\d+)\.blocks\.(\d+)\.", name):
            stage, index = int(block[1]), int(block[2])
            return 1 + sum(depths[:stage]) + index, num_layers
        if between := re.match(r"levels\.(\d+)\.(?:norm|downsample)\.", name):
            stage = min(int(between[1]) + 1, len(depths) - 1)
            return 1 + sum(depths[:stage]), num_layers
        return num_layers - 1, num_layers


def _read_arch(arch: str | Mapping[str, Any]) -> Arch:
    if isinstance(arch, str):
        if arch.lower() not in ARCHS:
            raise ValueError(f"arch must be one of {sorted(ARCHS)} or a mapping, got {arch!r}")
        return ARCHS[arch.lower()]
    known = Arch.__dataclass_fields__
    if unknown := sorted(set(arch) - set(known)):
        raise ValueError(f"arch has the unknown fields {unknown}; known are {sorted(known)}")
    if missing := sorted({"channels", "depths", "groups"} - set(arch)):
        raise ValueError(f"arch lacks the fields {missing}")
    return Arch(**arch)
