"""ConvNeXt-B and ViT-B with DCNv4 beside the originals: parameters, operations, time on a CPU.

    .venv/bin/python benchmarks/drop_in.py

The time is what one thread spends on a forward in float32, both networks by turns: other work on
the machine hardly changes it. The weights are those of the start, with offsets that move by pixels.
"""

import argparse
import statistics
import time

import torch
from cases import OFFSET_DEVIATION
from mmpretrain.models.backbones import ConvNeXt, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dcnv4_mm.integrations._mmpretrain import DCNv4ConvNeXt, DCNv4VisionTransformer
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.dcnv4.layout import offset_rows
from dcnv4_mm.ops.functional import backend_info

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


def seconds_by_turns(models: dict[str, nn.Module], images: Tensor, turns: int) -> dict[str, float]:
    """Median of the processor's time for a forward."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(turns):
        for name, model in models.items():
            start = time.process_time()
            model(images)
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224])
    parser.add_argument("--turns", type=int, default=9, help="for each pair and size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, dcnv4 on the CPU: {backend_info()['dcnv4']['cpu']}")
    for name, kinds in NETWORKS.items():
        for size in arguments.sizes:
            images = torch.randn(1, 3, size, size)
            models = dict(
                zip(("original", "DCNv4"), (make(kind, size) for kind in kinds), strict=True)
            )
            with torch.inference_mode():
                flops = {key: giga_flops(model, images) for key, model in models.items()}
                seconds = seconds_by_turns(models, images, arguments.turns)
            for key, model in models.items():
                parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
                print(
                    f"{name:10} {size} x {size}  {key:8}  {parameters:6.2f} M parameters  "
                    f"{flops[key]:7.1f} GFLOP  {1e3 * seconds[key]:8.1f} ms",
                    flush=True,
                )
            print(f"{'':22}DCNv4 is {seconds['original'] / seconds['DCNv4']:.2f} times as fast")
        before, after = PAPER[name]
        speeds = " / ".join(f"{b / a:.2f}" for a, b in zip(before, after, strict=True))
        print(f"{'':22}in the paper, UPerNet on an A100 in float32 / float16: {speeds}")


if __name__ == "__main__":
    main()
