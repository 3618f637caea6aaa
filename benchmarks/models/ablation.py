"""DCNv4 layers and FlashInternImage with what the paper removed from DCNv3."""

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from compare import Implementation, Settings, compare
from measure import Table
from models.layers import compare_layers, make_dcnv4, move_offsets
from models.networks import OURS, POINTS, forward_of_network, make_backbone, spread_offsets
from torch import Tensor, nn

from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.dcnv4.layout import pack, unpack


class Softmaxed(nn.Module):
    """The layer of offsets and masks, then a softmax over a group's masks, as before DCNv4."""

    def __init__(self, offset_mask: nn.Module, groups: int):
        super().__init__()
        self.offset_mask = offset_mask
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        offsets, masks = unpack(self.offset_mask(x), self.groups, POINTS)
        return pack(offsets, masks.softmax(-1))


class SeparateBranch(nn.Module):
    """Depthwise convolution, LayerNorm and GELU, then a linear layer each for offsets and masks."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.offsets = nn.Linear(channels, 2 * groups * POINTS)
        self.masks = nn.Linear(channels, groups * POINTS)
        self.groups = groups
        move_offsets(self.offsets)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = F.gelu(self.norm(x))
        offsets = self.offsets(x).unflatten(-1, (self.groups, POINTS, 2))
        return pack(offsets, self.masks(x).unflatten(-1, (self.groups, POINTS)))


def _with_softmax(layer: DCNv4) -> None:
    layer.offset_mask = Softmaxed(layer.offset_mask, layer.groups)


def _with_separate_branch(layer: DCNv4) -> None:
    layer.offset_mask = SeparateBranch(layer.channels, layer.groups)


def _with_both(layer: DCNv4) -> None:
    _with_separate_branch(layer)
    _with_softmax(layer)


def _with_depthwise(layer: DCNv4) -> None:
    channels = layer.channels
    layer.offset_mask_dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def _without_depthwise(layer: DCNv4) -> None:
    layer.offset_mask_dw = None


# What DCNv4 removed from DCNv3, restored: name -> change of a layer.
ABLATIONS: dict[str, Callable[[DCNv4], None]] = {
    "one linear layer": _without_depthwise,
    "depthwise convolution": _with_depthwise,
    "softmax": _with_softmax,
    "separate branch": _with_separate_branch,
    "separate branch, softmax": _with_both,
}


def run(table: Table, settings: Settings) -> None:
    """The layer, and the backbone."""
    layers = {
        name: lambda case, *_, change=change: make_dcnv4(case, change)
        for name, change in ABLATIONS.items()
    }
    compare_layers(table, settings, layers)
    options = settings.options
    image, batch = options.image or 224, options.batch or (64 if settings.on_gpu else 1)

    def build(name: str, size: str, dtype: str) -> Implementation:
        torch.manual_seed(0)
        backbone = make_backbone(OURS, size)
        spread_offsets(backbone, torch.randn(1, 3, image, image))
        for layer in list(backbone.modules()):
            if isinstance(layer, DCNv4):
                ABLATIONS[name](layer)
        return forward_of_network(backbone, image, batch, dtype, settings)

    for size, dtype in product(options.sizes or ["t"], settings.dtypes):
        compare(
            table,
            settings,
            case=f"{OURS}-{size.upper()} {batch}x{image}x{image}",
            measured="forward",
            dtype=dtype,
            builders={name: partial(build, name, size, dtype) for name in ABLATIONS},
        )
