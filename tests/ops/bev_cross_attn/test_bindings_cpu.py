"""The raw operators on CPU tensors: whatever they are called with, the process survives."""

from typing import NamedTuple

import pytest
import torch

import dcnv4_mm.ops.functional  # noqa: F401  (defines and loads the operators)

operators = torch.ops.dcnv4_mm


class Arguments(NamedTuple):
    grad_output: torch.Tensor = torch.zeros(2, 6, 8)
    value: torch.Tensor = torch.zeros(2, 3, 47, 2, 4)
    offsets_logits: torch.Tensor = torch.zeros(2, 6, 2, 18)
    reference_points: torch.Tensor = torch.zeros(2, 3, 6, 4, 2)
    bev_mask: torch.Tensor = torch.ones(2, 3, 6, dtype=torch.bool)
    level_sizes: tuple[int, ...] = (5, 7, 3, 4)
    num_points: int = 3


def forward(arguments):
    return operators.bev_cross_attn_forward(*arguments[1:])


def backward(arguments, *needs):
    return operators.bev_cross_attn_backward(*arguments, False, *needs)


BAD_ARGUMENTS = {
    "value of rank 4": dict(value=torch.zeros(2, 47, 2, 4)),
    "integer value": dict(value=torch.zeros(2, 3, 47, 2, 4, dtype=torch.int32)),
    "no cameras": dict(
        value=torch.zeros(2, 0, 47, 2, 4),
        reference_points=torch.zeros(2, 0, 6, 4, 2),
        bev_mask=torch.zeros(2, 0, 6, dtype=torch.bool),
    ),
    "no heads": dict(value=torch.zeros(2, 3, 47, 0, 4)),
    "no channels": dict(value=torch.zeros(2, 3, 47, 2, 0)),
    "other heads": dict(value=torch.zeros(2, 3, 47, 3, 4)),
    "other batch": dict(value=torch.zeros(3, 3, 47, 2, 4)),
    "other cameras": dict(value=torch.zeros(2, 4, 47, 2, 4)),
    "too few pixels": dict(value=torch.zeros(2, 3, 46, 2, 4)),
    "value of another dtype": dict(value=torch.zeros(2, 3, 47, 2, 4, dtype=torch.float64)),
    "no levels": dict(level_sizes=()),
    "half a level": dict(level_sizes=(5, 7, 3)),
    "another level": dict(level_sizes=(5, 7, 3, 4, 1, 1)),
    "empty level": dict(level_sizes=(47, 1, 0, 4)),
    "negative level": dict(level_sizes=(5, 7, -3, -4)),
    "enormous level": dict(level_sizes=(2**62, 4, 3, 4)),
    "points of rank 3": dict(offsets_logits=torch.zeros(2, 6, 36)),
    "points of rank 0": dict(offsets_logits=torch.zeros(())),
    "points of other width": dict(offsets_logits=torch.zeros(2, 6, 2, 17)),
    "half points": dict(offsets_logits=torch.zeros(2, 6, 2, 18).half()),
    "no points": dict(num_points=0, offsets_logits=torch.zeros(2, 6, 2, 0)),
    "negative points": dict(num_points=-3),
    "enormous points": dict(num_points=2**62),
    "reference_points of rank 4": dict(reference_points=torch.zeros(2, 3, 6, 8)),
    "reference_points of other cameras": dict(reference_points=torch.zeros(2, 2, 6, 4, 2)),
    "reference_points of other queries": dict(reference_points=torch.zeros(2, 3, 5, 4, 2)),
    "reference_points of three numbers": dict(reference_points=torch.zeros(2, 3, 6, 4, 3)),
    "no pillar": dict(reference_points=torch.zeros(2, 3, 6, 0, 2)),
    "half reference_points": dict(reference_points=torch.zeros(2, 3, 6, 4, 2).half()),
    "double reference_points": dict(reference_points=torch.zeros(2, 3, 6, 4, 2).double()),
    "bev_mask of rank 2": dict(bev_mask=torch.zeros(2, 18, dtype=torch.bool)),
    "bev_mask of other queries": dict(bev_mask=torch.zeros(2, 3, 5, dtype=torch.bool)),
    "bev_mask of bytes": dict(bev_mask=torch.zeros(2, 3, 6, dtype=torch.uint8)),
}


@pytest.mark.parametrize("changes", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_raw_operators_reject_bad_arguments(changes):
    forward(Arguments())
    bad = Arguments()._replace(**changes)
    with pytest.raises(RuntimeError, match="bev_cross_attn: "):
        forward(bad)
    with pytest.raises(RuntimeError, match="bev_cross_attn: "):
        backward(bad, True, True)


@pytest.mark.parametrize(
    "grad_output", [torch.zeros(2, 6), torch.zeros(2, 6, 7), torch.zeros(2, 6, 8).half()]
)
def test_raw_backward_rejects_a_bad_gradient(grad_output):
    with pytest.raises(RuntimeError, match="bev_cross_attn: grad_output"):
        backward(Arguments(grad_output=grad_output), True, True)
