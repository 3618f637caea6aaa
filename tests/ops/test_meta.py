"""The operators on the meta device: shapes without data."""

import torch

from dcnv4_mm.ops.functional import bev_cross_attn, dcnv4, flash_deform_attn, ms_deform_attn

SHAPES = [(4, 6), (2, 3)]
PIXELS = 30


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def check(output, shape):
    assert output.device.type == "meta"
    assert output.shape == shape


def test_dcnv4():
    check(dcnv4(meta(2, 5, 7, 32), meta(2, 5, 7, 56), groups=2), (2, 5, 7, 32))


def test_flash_deform_attn():
    # Two levels of three points, each with two coordinates and a logit.
    output = flash_deform_attn(meta(2, PIXELS, 4, 8), SHAPES, meta(2, 9, 4, 18), num_points=3)
    check(output, (2, 9, 32))


def test_ms_deform_attn():
    locations, weights = meta(2, 9, 4, 2, 3, 2), meta(2, 9, 4, 2, 3)
    check(ms_deform_attn(meta(2, PIXELS, 4, 8), SHAPES, locations, weights), (2, 9, 32))


def test_bev_cross_attn():
    # Two cameras, pillars of four points.
    references, hits = meta(2, 2, 9, 4, 2), meta(2, 2, 9, dtype=torch.bool)
    arguments = meta(2, 2, PIXELS, 4, 8), SHAPES, meta(2, 9, 4, 2 * 4 * 3), references, hits
    check(bev_cross_attn(*arguments, num_points=4), (2, 9, 32))
