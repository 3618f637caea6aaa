"""The shapes that DCNv4 is measured on, and its inputs."""

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from dcnv4_mm.ops.dcnv4.layout import pack

# Offsets of trained networks have deviations of 0.5 to 2 pixels. Zeros would flatter every
# implementation: neighbouring points then share half of their pixels.
OFFSET_DEVIATION = 2.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A 3x3 DCNv4 with stride and padding 1, and what it shall reach.

    Attributes:
        batch: Number of images.
        height: Rows of an image.
        width: Columns of an image.
        groups: Number of groups.
        channels: Channels of a group.
        target: Forward speed of one thread in float32, as a multiple of ``grid_sample``'s.
        backward_target: The same of forward and backward together.
    """

    batch: int = 1
    height: int
    width: int
    groups: int
    channels: int
    target: float | None = None
    backward_target: float | None = 5.0

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width} G{self.groups} D{self.channels}"

    def bytes(self, itemsize: int, backward: bool) -> int:
        """Size of all tensors of the forward, or of the backward."""
        per_group = (3 * self.channels + 54) if backward else (2 * self.channels + 27)
        return self.batch * self.height * self.width * self.groups * per_group * itemsize


CPU_CASES = (
    # The stages of FlashInternImage-T at 224 x 224, with wider groups for the first.
    Case(height=56, width=56, groups=8, channels=16, target=15),
    Case(height=56, width=56, groups=4, channels=32, target=20),
    Case(height=56, width=56, groups=2, channels=64, target=30),
    Case(height=28, width=28, groups=16, channels=16, target=8),
    Case(height=14, width=14, groups=32, channels=16, target=8),
    # Training: a batch of the quickstart's size, and the first stage on a detector's image.
    Case(batch=4, height=40, width=40, groups=2, channels=16),
    Case(height=200, width=304, groups=4, channels=16),
)


def parse_case(text: str) -> Case:
    """Reads "batch x height x width x groups x channels", without the spaces."""
    names = ("batch", "height", "width", "groups", "channels")
    return Case(**dict(zip(names, map(int, text.split("x")), strict=True)))


def case_argument(text: str) -> Case:
    """The same for a command's argument."""
    try:
        return parse_case(text)
    except ValueError:
        wanted = "batch, height, width, groups and channels of a group, as in 1x56x56x8x16"
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None


def _cases(shapes: str, channels: int) -> tuple[Case, ...]:
    return tuple(parse_case(f"{shape}x{channels}") for shape in shapes.split())


# The shapes of the paper's tables of operators, as FlashInternImage has them (D = 16) and wider.
PAPER_CASES = _cases(
    "64x56x56x8 64x28x28x16 64x14x14x32 64x7x7x64 64x14x14x48 "
    "1x200x320x8 1x100x160x16 1x50x80x32 1x25x40x64 1x64x64x48",
    channels=16,
)
WIDE_CASES = _cases("64x56x56x4 64x14x14x16 1x200x320x4", channels=32) + _cases(
    "64x56x56x2 64x28x28x4 64x14x14x8 64x7x7x16 1x200x320x2", channels=64
)
# Stages of FlashInternImage-T, -B and -L outside the original's tables, odd sizes among them.
STAGE_CASES = _cases(
    "16x128x128x4 2x200x336x4 2x100x168x8 2x50x84x16 2x25x42x32 16x56x56x7 16x7x7x56 16x7x7x80",
    channels=16,
)


def make_inputs(
    case: Case, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws value (N, H, W, C), offset_mask (N, H, W, M) and a gradient (N, H, W, C)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(case.batch, case.height, case.width, *shape, generator=generator)

    offsets = OFFSET_DEVIATION * normal(case.groups, 9, 2)
    offset_mask = pack(offsets, normal(case.groups, 9))
    value, grad = (normal(case.groups * case.channels) for _ in range(2))
    return tuple(tensor.to(device, dtype) for tensor in (value, offset_mask, grad))
