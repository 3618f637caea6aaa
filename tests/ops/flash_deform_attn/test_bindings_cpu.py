"""The raw operators on CPU tensors: whatever they are called with, the process survives."""

from typing import NamedTuple

import pytest
import torch

import dcnv4_mm.ops.functional  # noqa: F401  (defines and loads the operators)

operators = torch.ops.dcnv4_mm


class Separate(NamedTuple):
    grad_output: torch.Tensor = torch.zeros(2, 6, 8)
    value: torch.Tensor = torch.zeros(2, 47, 2, 4)
    locations: torch.Tensor = torch.zeros(2, 6, 2, 2, 3, 2)
    weights: torch.Tensor = torch.zeros(2, 6, 2, 2, 3)
    level_sizes: tuple[int, ...] = (5, 7, 3, 4)


class Packed(NamedTuple):
    grad_output: torch.Tensor = torch.zeros(2, 6, 8)
    value: torch.Tensor = torch.zeros(2, 47, 2, 4)
    locations_logits: torch.Tensor = torch.zeros(2, 6, 2, 18)
    level_sizes: tuple[int, ...] = (5, 7, 3, 4)
    num_points: int = 3


PROBLEMS = {"ms_deform_attn": Separate, "flash_deform_attn": Packed}


def forward(name, problem):
    return getattr(operators, f"{name}_forward")(*problem[1:])


def backward(name, problem, *needs):
    return getattr(operators, f"{name}_backward")(*problem, False, *needs)


BAD_ARGUMENTS = {
    "value of rank 3": dict(value=torch.zeros(2, 47, 8)),
    "integer value": dict(value=torch.zeros(2, 47, 2, 4, dtype=torch.int32)),
    "no heads": dict(value=torch.zeros(2, 47, 0, 4)),
    "no channels": dict(value=torch.zeros(2, 47, 2, 0)),
    "other heads": dict(value=torch.zeros(2, 47, 3, 4)),
    "other batch": dict(value=torch.zeros(3, 47, 2, 4)),
    "too few pixels": dict(value=torch.zeros(2, 46, 2, 4)),
    "value of another dtype": dict(value=torch.zeros(2, 47, 2, 4, dtype=torch.float64)),
    "no levels": dict(level_sizes=()),
    "half a level": dict(level_sizes=(5, 7, 3)),
    "another level": dict(level_sizes=(5, 7, 3, 4, 1, 1)),
    "empty level": dict(level_sizes=(47, 1, 0, 4)),
    "negative level": dict(level_sizes=(5, 7, -3, -4)),
    "enormous level": dict(level_sizes=(2**62, 4, 3, 4)),
    "long level": dict(level_sizes=(1, 2**24 + 1)),
    "enormous levels": dict(level_sizes=(2**24, 2**24) * 4),
}
BAD_SEPARATE = {
    "locations of rank 5": dict(locations=torch.zeros(2, 6, 2, 2, 3)),
    "locations of rank 0": dict(locations=torch.zeros(())),
    "locations of three numbers": dict(locations=torch.zeros(2, 6, 2, 2, 3, 3)),
    "no points": dict(locations=torch.zeros(2, 6, 2, 2, 0, 2), weights=torch.zeros(2, 6, 2, 2, 0)),
    "weights of other queries": dict(weights=torch.zeros(2, 5, 2, 2, 3)),
    "weights of another dtype": dict(weights=torch.zeros(2, 6, 2, 2, 3).half()),
}
BAD_PACKED = {
    "packed of rank 3": dict(locations_logits=torch.zeros(2, 6, 36)),
    "packed of other width": dict(locations_logits=torch.zeros(2, 6, 2, 17)),
    "no points": dict(num_points=0, locations_logits=torch.zeros(2, 6, 2, 0)),
    "negative points": dict(num_points=-3),
    "enormous points": dict(num_points=2**62),
}
CASES = [
    *(("ms_deform_attn", changes) for changes in (BAD_ARGUMENTS | BAD_SEPARATE).values()),
    *(("flash_deform_attn", changes) for changes in (BAD_ARGUMENTS | BAD_PACKED).values()),
]


@pytest.mark.parametrize(
    ("name", "changes"),
    CASES,
    ids=[*(BAD_ARGUMENTS | BAD_SEPARATE), *(BAD_ARGUMENTS | BAD_PACKED)],
)
def test_raw_operators_reject_bad_arguments(name, changes):
    bad = PROBLEMS[name]()._replace(**changes)
    with pytest.raises(RuntimeError, match="flash_deform_attn: "):
        forward(name, bad)
    with pytest.raises(RuntimeError, match="flash_deform_attn: "):
        backward(name, bad, True, True)


@pytest.mark.parametrize(
    "grad_output", [torch.zeros(2, 6), torch.zeros(2, 6, 7), torch.zeros(2, 6, 8).half()]
)
@pytest.mark.parametrize("name", PROBLEMS)
def test_raw_backward_rejects_a_bad_gradient(name, grad_output):
    bad = PROBLEMS[name](grad_output=grad_output)
    with pytest.raises(RuntimeError, match="flash_deform_attn: grad_output"):
        backward(name, bad, True, True)
