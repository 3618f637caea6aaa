"""The operators by standard ones mean the same as the references."""

import pytest
import torch
from ops.bev_cross_attn import problems as bev_cross_attn_problems
from ops.dcnv4 import problems as dcnv4_problems
from ops.flash_deform_attn import problems as flash_deform_attn_problems

from dcnv4_mm.export.portable import portable_decompositions
from dcnv4_mm.ops.functional import backend_info

TABLE = portable_decompositions()
# grid_sample takes locations as fractions of the image: a few roundings more of numbers up to 20.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.float16: 2e-3}

DCNV4_PROBLEMS = {
    "usual": {},
    "without_center": {"remove_center": True},
    "rows_and_columns_differ": dict(
        kernel_size=(4, 3), stride=(2, 1), padding=(3, 1), dilation=(1, 2), offset_scale=0.5
    ),
    "even_kernel_without_center": dict(kernel_size=(2, 4), padding=(2, 2), remove_center=True),
    "far_outside": {"sigma": 20.0},
    "whole_offsets": {"whole_offsets": True},
    "one_pixel": {"size": (1, 1)},
    "no_image": {"batch": 0},
    "half": {"dtype": torch.float16},
    "single": {"dtype": torch.float32},
}
ATTENTION_PROBLEMS = {
    "usual": {},
    "one_level": {"shapes": ((5, 3),)},
    "one_pixel": {"shapes": ((1, 1), (2, 7))},
    "far_outside": {"reach": 3.0},
    "half": {"dtypes": (torch.float16, torch.float32)},
}
BEV_PROBLEMS = {
    "usual": {},
    "one_camera": {"cameras": 1, "shapes": ((5, 3),)},
    "no_hit": {"density": 0.0},
    "more_points_than_pillar": {"points": 8, "pillar": 4},
    "half": {"dtypes": (torch.float16, torch.float32)},
}


def check(name, arguments):
    operator = getattr(torch.ops.dcnv4_mm, f"{name}_forward").default
    output = TABLE[operator](*arguments)
    is_number = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in arguments]
    wide = [a.double() if number else a for a, number in zip(arguments, is_number, strict=True)]
    expected = operator(*wide)
    value = arguments[0]
    assert output.dtype == value.dtype
    assert output.is_contiguous()
    tolerance = TOLERANCE[value.dtype]
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=10 * tolerance)


def test_every_operator_has_one():
    assert {str(operator) for operator in TABLE} == {
        f"dcnv4_mm.{name}_forward.default" for name in backend_info()
    }


@pytest.mark.parametrize("settings", DCNV4_PROBLEMS.values(), ids=DCNV4_PROBLEMS)
def test_dcnv4_equals_the_operator(settings):
    check("dcnv4", dcnv4_problems.make_problem(**settings)[1:])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("settings", ATTENTION_PROBLEMS.values(), ids=ATTENTION_PROBLEMS)
def test_attention_equals_the_operator(settings, packed):
    problem = flash_deform_attn_problems.make_problem(packed=packed, **settings)
    check(problem.name, problem.inputs())


@pytest.mark.parametrize("settings", BEV_PROBLEMS.values(), ids=BEV_PROBLEMS)
def test_bev_attention_equals_the_operator(settings):
    check("bev_cross_attn", bev_cross_attn_problems.make_problem(**settings).inputs())
