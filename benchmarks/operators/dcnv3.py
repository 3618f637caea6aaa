"""DCNv3 at the stages of InternImage-T, 224 x 224: ours, and plain PyTorch."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from compare import Settings
from measure import Table
from operators.cases import OFFSET_DEVIATION
from operators.comparison import Operator, compare_operators, to_float32
from torch import Tensor

from dcnv4_mm.ops.functional import dcnv3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A 3x3 DCNv3 with stride and padding 1 and groups of 16 channels."""

    batch: int = 1
    side: int
    groups: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.side}x{self.side} G{self.groups} D16"

    def bytes(self, itemsize: int, backward: bool) -> int:
        """Size of all tensors of the forward, or of the backward."""
        per_group = 3 * 16 + 54 if backward else 2 * 16 + 27
        return self.batch * self.side**2 * self.groups * per_group * itemsize


SIZES = ((56, 4), (28, 8), (14, 16), (7, 32))


def grid_sample_dcnv3(value: Tensor, offset: Tensor, mask: Tensor, *, groups: int) -> Tensor:
    """A 3x3 DCNv3 of stride 1 as its users write it in plain PyTorch, with one ``grid_sample``.

    Args:
        value: (N, H, W, C); this and the others as in :func:`dcnv4_mm.ops.functional.dcnv3`.
        offset: (N, H, W, 18 * groups).
        mask: (N, H, W, 9 * groups).
        groups: Number of groups.

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
    locations = (2 * pixels + 1) / size - 1 + (grid + offsets) * (2 / size)

    image = value.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    locations = locations.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, height * width, 9, 2)
    masks = mask.unflatten(-1, (groups, 9)).permute(0, 3, 1, 2, 4)
    samples = F.grid_sample(image, locations, mode="bilinear", align_corners=False)
    output = (samples * masks.reshape(batch * groups, 1, height * width, 9)).sum(-1)
    return output.view(batch, channels, height, width).permute(0, 2, 3, 1).contiguous()


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Draws value, offsets, and masks that sum to 1."""
    generator = torch.Generator().manual_seed(0)
    value, offset, logits = (
        torch.randn(case.batch, case.side, case.side, width * case.groups, generator=generator)
        for width in (16, 18, 9)
    )
    mask = logits.unflatten(-1, (case.groups, 9)).softmax(-1).flatten(-2)
    return tuple(t.to(device, dtype) for t in (value, offset * OFFSET_DEVIATION, mask))


def expected(case: Case, *inputs: Tensor) -> Tensor:
    return grid_sample_dcnv3(*(tensor.double() for tensor in inputs), groups=case.groups)


def _ours(case: Case, *inputs: Tensor) -> Operator:
    return Operator(function=partial(dcnv3, groups=case.groups), inputs=inputs)


def _grid_sample(case: Case, *inputs: Tensor) -> Operator:
    inputs, dtype = to_float32(*inputs)
    function = partial(grid_sample_dcnv3, groups=case.groups)
    return Operator(function=function, inputs=inputs, dtype=dtype)


def run(table: Table, settings: Settings) -> None:
    """Ours and ``grid_sample``."""
    batch = settings.options.batch or (64 if settings.on_gpu else 1)
    compare_operators(
        table,
        settings,
        cases=[Case(batch=batch, side=side, groups=groups) for side, groups in SIZES],
        make_inputs=make_inputs,
        expected=expected,
        operators={"dcnv3": _ours, "grid_sample": _grid_sample},
    )
