"""ConvNeXt-B and ViT-B with DCNv4 and the originals: parameters, operations, time on a CPU."""

import time
from functools import partial

import torch
from compare import Implementation, Settings, compare
from measure import Table
from mmpretrain.models.backbones import ConvNeXt, VisionTransformer
from models.networks import parameters_millions, without_gradients
from operators.cases import OFFSET_DEVIATION
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dcnv4_mm.integrations._mmpretrain import DCNv4ConvNeXt, DCNv4VisionTransformer
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.dcnv4.layout import offset_rows

NETWORKS = {
    "ConvNeXt-B": (ConvNeXt, DCNv4ConvNeXt),
    "ViT-B/16": (VisionTransformer, DCNv4VisionTransformer),
}
# The paper's images per second in UPerNet, 512 x 512, on one A100, by dtype: original, DCNv4.
PAPER = {
    "ConvNeXt-B": {"float32": (95, 96), "float16": (147, 164)},
    "ViT-B/16": {"float32": (51, 67), "float16": (74, 92)},
}


def make(kind: type[nn.Module], size: int) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"img_size": size} if issubclass(kind, VisionTransformer) else {}
    model = kind(arch="base", **arguments)
    # mmpretrain's does not return itself.
    model.eval()
    for layer in model.modules():
        if isinstance(layer, DCNv4):
            projection = layer.offset_mask
            deviation = OFFSET_DEVIATION * projection.in_features**-0.5
            with torch.no_grad():
                rows = projection.weight[offset_rows(layer.groups, 9)]
                projection.weight[offset_rows(layer.groups, 9)] = torch.randn_like(rows) * deviation
    return model


def giga_flops(model: nn.Module, images: Tensor) -> float:
    """Floating-point operations, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(images)
    return counter.get_total_flops() / 1e9


def run(table: Table, settings: Settings) -> None:
    """The forward, by the CPU time of the process, on which other work has little influence."""
    size = settings.options.image or 224
    images = torch.randn(1, 3, size, size)

    def build(name: str, which: int, dtype: str) -> Implementation:
        model = make(NETWORKS[name][which], size)
        with torch.inference_mode():
            flops = giga_flops(model, images)
        figures = dict(parameters_millions=parameters_millions(model), gigaflops=flops)
        figures["paper"] = PAPER[name][dtype][which]
        call = without_gradients(model, images)
        return Implementation(calls=[call], images=1, figures=figures)

    for name in NETWORKS:
        compare(
            table,
            settings,
            case=f"{name} 1x{size}x{size}",
            measured="forward",
            dtype="float32",
            builders={
                "DCNv4": partial(build, name, 1, "float32"),
                "original": partial(build, name, 0, "float32"),
            },
            clock=time.process_time,
        )
