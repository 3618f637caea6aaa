"""DCNv3 at the stages of InternImage-T, 224 x 224: ours, and plain PyTorch."""

from functools import partial

import torch
from compare import Settings
from measure import Table
from operators.cases import OFFSET_DEVIATION, Case
from operators.comparison import Operator, compare_operators, to_float32
from operators.dcnv4 import grid_sample_dcnv4
from torch import Tensor

from dcnv4_mm.ops.dcnv4.layout import pack
from dcnv4_mm.ops.functional import dcnv3

SIZES = ((56, 4), (28, 8), (14, 16), (7, 32))


def grid_sample_dcnv3(value: Tensor, offset: Tensor, mask: Tensor, *, groups: int) -> Tensor:
    """A 3x3 DCNv3 of stride 1 with one ``grid_sample``; the masks are softmaxed already."""
    points = pack(offset.unflatten(-1, (groups, 9, 2)), mask.unflatten(-1, (groups, 9)))
    return grid_sample_dcnv4(value, points, groups=groups)


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Draws value, offsets, and masks that sum to 1."""
    generator = torch.Generator().manual_seed(0)
    size = (case.batch, case.height, case.width)
    value, offset, logits = (
        torch.randn(*size, width * case.groups, generator=generator)
        for width in (case.channels, 18, 9)
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
        cases=[
            Case(batch=batch, height=side, width=side, groups=groups, channels=16)
            for side, groups in SIZES
        ],
        make_inputs=make_inputs,
        expected=expected,
        operators={"dcnv3": _ours, "grid_sample": _grid_sample},
    )
