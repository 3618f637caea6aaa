"""Towers and predictors of the perspective head, with the parameter names of the released files."""

from collections.abc import Sequence

import torch
from mmcv.cnn import Scale, build_norm_layer
from torch import Tensor, nn

__all__ = ["STRIDES", "FCOS2DHead", "FCOS3DHead", "predictor"]

STRIDES = (8, 16, 32, 64, 128)
# Mean and standard deviation of the depths assigned to each level, in metres.
_MEAN_DEPTH = (44.921, 20.252, 11.712, 7.166, 8.548)
_STD_DEPTH = (24.331, 9.833, 6.223, 4.611, 8.275)


class _TowerConv(nn.Conv2d):
    """A convolution that all levels share, with a norm for each level, and ReLU."""

    def __init__(self, channels: int, num_levels: int, norm_cfg: dict) -> None:
        super().__init__(channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.ModuleList(
            build_norm_layer(norm_cfg, channels)[1] for _ in range(num_levels)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        return self.norm[level](super().forward(x)).relu()


def _tower(channels: int, num_levels: int, norm_cfg: dict, num_convs: int = 4) -> nn.ModuleList:
    return nn.ModuleList(_TowerConv(channels, num_levels, norm_cfg) for _ in range(num_convs))


def _run_tower(tower: nn.ModuleList, x: Tensor, level: int) -> Tensor:
    for conv in tower:
        x = conv(x, level)
    return x


def predictor(channels: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    """A 3x3 prediction layer, initialized as in the original."""
    conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=bias)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


def _scales(starts: Sequence[float]) -> nn.ModuleList:
    scales = nn.ModuleList(Scale() for _ in starts)
    for scale, start in zip(scales, starts, strict=True):
        # A vector of one, as in the released files.
        scale.scale = nn.Parameter(torch.tensor([float(start)]))
    return scales


class _Offset(nn.Module):
    """A learnable offset."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class FCOS2DHead(nn.Module):
    """FCOS: class logits, 2D boxes and centerness; also returns the classification features."""

    def __init__(self, channels: int, num_classes: int, norm_cfg: dict) -> None:
        super().__init__()
        levels = len(STRIDES)
        self.cls_tower = _tower(channels, levels, norm_cfg)
        self.box2d_tower = _tower(channels, levels, norm_cfg)
        self.cls_logits = predictor(channels, num_classes)
        self.box2d_reg = predictor(channels, 4)
        self.centerness = predictor(channels, 1)
        self.scales_box2d_reg = _scales(STRIDES)

    def forward(self, x: Tensor, level: int) -> tuple[dict[str, Tensor], Tensor]:
        cls = _run_tower(self.cls_tower, x, level)
        box = _run_tower(self.box2d_tower, x, level)
        scaled = self.scales_box2d_reg[level](self.box2d_reg(box))
        outputs = {
            "logits": self.cls_logits(cls),
            "box2d_reg": scaled.relu(),
            "centerness": self.centerness(box),
        }
        return outputs, cls


class FCOS3DHead(nn.Module):
    """3D box parameters per class; the channel order is (parameter, class)."""

    def __init__(self, channels: int, num_classes: int, norm_cfg: dict) -> None:
        super().__init__()
        self.register_buffer("mean_depth_per_level", torch.tensor(_MEAN_DEPTH))
        self.register_buffer("std_depth_per_level", torch.tensor(_STD_DEPTH))
        levels = len(STRIDES)
        self.box3d_tower = _tower(channels, levels, norm_cfg)
        # Lists of one, as the released names have it.
        self.box3d_quat = nn.ModuleList([predictor(channels, 4 * num_classes)])
        self.box3d_ctr = nn.ModuleList([predictor(channels, 2 * num_classes)])
        self.box3d_depth = nn.ModuleList([predictor(channels, num_classes, bias=False)])
        self.box3d_size = nn.ModuleList([predictor(channels, 3 * num_classes)])
        self.box3d_conf = nn.ModuleList([predictor(channels, num_classes)])
        self.scales_proj_ctr = _scales(STRIDES)
        self.scales_size = _scales([1.0] * levels)
        self.scales_conf = _scales([1.0] * levels)
        self.scales_depth = _scales([0.3 * sigma for sigma in _STD_DEPTH])
        self.offsets_depth = nn.ModuleList(_Offset(mean) for mean in _MEAN_DEPTH)

    def forward(self, x: Tensor, level: int) -> dict[str, Tensor]:
        x = _run_tower(self.box3d_tower, x, level)
        depth = self.scales_depth[level](self.box3d_depth[0](x))
        return {
            "quat": self.box3d_quat[0](x),
            "proj_ctr": self.scales_proj_ctr[level](self.box3d_ctr[0](x)),
            "depth": self.offsets_depth[level](depth),
            "size": self.scales_size[level](self.box3d_size[0](x)),
            "conf": self.scales_conf[level](self.box3d_conf[0](x)),
        }
