"""DCNv3 at the stages of InternImage-T, 224 x 224: this package's, and plain PyTorch.

python benchmarks/internimage.py --threads 2
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from cases import OFFSET_DEVIATION
from measure import interleaved, ratio
from torch import Tensor

from dcnv4_mm.ops.functional import backend_info, dcnv3

# Rows or columns, and groups of 16 channels.
STAGES = ((56, 4), (28, 8), (14, 16), (7, 32))


def grid_sample_dcnv3(value: Tensor, offset: Tensor, mask: Tensor, *, groups: int) -> Tensor:
    """A 3x3 DCNv3 of stride 1 as its users write it in plain PyTorch, with one ``grid_sample``.

    Args:
        value: As in :func:`dcnv4_mm.ops.functional.dcnv3`; so are the others.
        offset: See there.
        mask: See there.
        groups: See there.

    Returns:
        (N, H, W, C).
    """
    batch, height, width, channels = value.shape
    options = {"dtype": value.dtype, "device": value.device}
    steps = torch.arange(-1, 2, **options)
    # [9, 2]: x and y of the points around the centre, columns first.
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)
    rows, columns = torch.arange(height, **options), torch.arange(width, **options)
    # [H, W, 1, 1, 2]: pixels in the units of grid_sample, i of n at (2 i + 1) / n - 1.
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[:, :, None, None]
    size = torch.tensor([width, height], **options)
    offsets = offset.unflatten(-1, (groups, 9, 2))
    places = (2 * pixels + 1) / size - 1 + (grid + offsets) * (2 / size)

    image = value.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    places = places.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, height * width, 9, 2)
    masks = mask.unflatten(-1, (groups, 9)).permute(0, 3, 1, 2, 4)
    samples = F.grid_sample(image, places, mode="bilinear", align_corners=False)
    output = (samples * masks.reshape(batch * groups, 1, height * width, 9)).sum(-1)
    return output.view(batch, channels, height, width).permute(0, 2, 3, 1).contiguous()


def make_inputs(side: int, groups: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Value, offsets, masks that sum to 1, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    value, offset, logits, gradient = (
        torch.randn(1, side, side, width, generator=generator, dtype=dtype)
        for width in (16 * groups, 18 * groups, 9 * groups, 16 * groups)
    )
    mask = logits.unflatten(-1, (groups, 9)).softmax(-1).flatten(-2)
    return value, offset * OFFSET_DEVIATION, mask, gradient


def check(groups: int) -> None:
    """Raises unless both compute the same."""
    value, offset, mask, _ = make_inputs(14, groups, torch.float64)
    plain = grid_sample_dcnv3(value, offset, mask, groups=groups)
    torch.testing.assert_close(dcnv3(value, offset, mask, groups=groups), plain)


def forward(operator: Callable[..., Tensor], inputs: tuple[Tensor, ...], groups: int) -> None:
    with torch.inference_mode():
        operator(*inputs[:3], groups=groups)


def both(operator: Callable[..., Tensor], inputs: tuple[Tensor, ...], groups: int) -> None:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:3]]
    torch.autograd.grad(operator(*leaves, groups=groups), leaves, inputs[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each line")
    arguments = parser.parse_args()
    check(groups=2)
    print(f"dcnv4 on the CPU: {backend_info()['dcnv4']['cpu']}; torch {torch.__version__}")
    print(f"{arguments.threads} threads, float32; milliseconds")
    threads = {"ours": arguments.threads, "plain": arguments.threads}
    for side, groups in STAGES:
        inputs = make_inputs(side, groups)
        for name, run in (("forward", forward), ("forward and backward", both)):
            contenders = {
                "ours": partial(run, dcnv3, inputs, groups),
                "plain": partial(run, grid_sample_dcnv3, inputs, groups),
            }
            times = interleaved(contenders, seconds=arguments.seconds, threads=threads)
            ours, plain = (statistics.median(times[key]) for key in ("ours", "plain"))
            speed = ratio(times["plain"], times["ours"])
            print(
                f"{side:2} x {side:2}, {groups:2} groups of 16, {name:20}  ours {ours:8.3f}  "
                f"plain {plain:8.3f}  {speed:5.1f} times as fast",
                flush=True,
            )


if __name__ == "__main__":
    main()
