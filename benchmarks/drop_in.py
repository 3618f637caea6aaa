"""ConvNeXt-B and ViT-B with DCNv4 beside the originals: parameters, operations, time on a CPU.

    .venv-mmpretrain/bin/python benchmarks/drop_in.py --threads 2

The time is that of a forward in float32, both networks by turns; the weights are those of the
start, with offsets that move by pixels.
"""

import argparse
import statistics
from functools import partial

import torch
from cases import OFFSET_DEVIATION
from measure import interleaved, ratio
from mmpretrain.models.backbones import ConvNeXt, VisionTransformer
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
# The paper's frames per second in UPerNet, 512 x 512, on one A100: float32, float16.
PAPER = {"ConvNeXt-B": ((95, 147), (96, 164)), "ViT-B/16": ((51, 74), (67, 92))}


def make(kind: type[nn.Module], size: int) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"img_size": size} if issubclass(kind, VisionTransformer) else {}
    model = kind(arch="base", **arguments)
    # mmpretrain's returns nothing.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each pair and size")
    arguments = parser.parse_args()
    threads = dict.fromkeys(("original", "DCNv4"), arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, float32")
    for name, kinds in NETWORKS.items():
        for size in arguments.sizes:
            images = torch.randn(1, 3, size, size)
            models = dict(zip(threads, (make(kind, size) for kind in kinds), strict=True))
            with torch.inference_mode():
                flops = {key: giga_flops(model, images) for key, model in models.items()}
                times = interleaved(
                    {key: partial(model, images) for key, model in models.items()},
                    seconds=arguments.seconds,
                    threads=threads,
                )
            for key, model in models.items():
                parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
                print(
                    f"{name:10} {size} x {size}  {key:8}  {parameters:6.2f} M parameters  "
                    f"{flops[key]:7.1f} GFLOP  {statistics.median(times[key]):8.1f} ms",
                    flush=True,
                )
            print(f"{'':22}DCNv4 is {ratio(times['original'], times['DCNv4']):.2f} times as fast")
        before, after = PAPER[name]
        speeds = " / ".join(f"{b / a:.2f}" for a, b in zip(before, after, strict=True))
        print(f"{'':22}in the paper, UPerNet on an A100 in float32 / float16: {speeds}")


if __name__ == "__main__":
    main()
