"""The operators on tensors without data: on the meta device, and fake ones on a GPU."""

import pytest
import torch
from torch import empty
from torch._subclasses import FakeTensorMode

from dcnv4_mm.ops.functional import bev_cross_attn, dcnv4, flash_deform_attn, ms_deform_attn

SHAPES = [(4, 6), (2, 3)]
PIXELS = 30


@pytest.fixture(params=["meta", "cuda"], autouse=True)
def device(request):
    """Where ``torch.empty`` makes tensors; a CUDA build of torch needs no GPU for fake ones."""
    if request.param == "meta":
        with torch.device("meta") as device:
            yield device
        return
    if torch.version.cuda is None:
        pytest.skip("needs a CUDA build of torch")
    with FakeTensorMode(), torch.device("cuda") as device:
        yield device


def check(output, shape, device):
    assert output.device.type == device.type
    assert output.shape == shape


def test_dcnv4(device):
    check(dcnv4(empty(2, 5, 7, 32), empty(2, 5, 7, 56), groups=2), (2, 5, 7, 32), device)


def test_flash_deform_attn(device):
    # Two levels of three points, each with two coordinates and a logit.
    output = flash_deform_attn(empty(2, PIXELS, 4, 8), SHAPES, empty(2, 9, 4, 18), num_points=3)
    check(output, (2, 9, 32), device)


def test_ms_deform_attn(device):
    locations, weights = empty(2, 9, 4, 2, 3, 2), empty(2, 9, 4, 2, 3)
    output = ms_deform_attn(empty(2, PIXELS, 4, 8), SHAPES, locations, weights)
    check(output, (2, 9, 32), device)


def test_bev_cross_attn(device):
    # Two cameras, pillars of four points.
    reference_points, bev_mask = empty(2, 2, 9, 4, 2), empty(2, 2, 9, dtype=torch.bool)
    arguments = (
        empty(2, 2, PIXELS, 4, 8),
        SHAPES,
        empty(2, 9, 4, 2 * 4 * 3),
        reference_points,
        bev_mask,
    )
    check(bev_cross_attn(*arguments, num_points=4), (2, 9, 32), device)


def test_shapes_are_checked_without_kernels():
    with pytest.raises(ValueError, match=r"offset_mask: expected .*\(2, 5, 7\), got \(2, 5, 6\)"):
        dcnv4(empty(2, 5, 7, 32), empty(2, 5, 6, 56), groups=2)
    with pytest.raises(ValueError, match=r"30 rows, got 29"):
        flash_deform_attn(empty(2, 29, 4, 8), SHAPES, empty(2, 9, 4, 18), num_points=3)
