"""How offsets and masks are packed, by hand-made examples."""

import pytest
import torch

from dcnv4_mm.ops.dcnv4.layout import (
    kernel_points,
    num_points,
    offset_mask_channels,
    offset_rows,
    output_size,
    pack,
    unpack,
)


def test_points_run_over_columns_first():
    assert list(kernel_points((2, 3))) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_the_middle_point_may_be_left_out():
    rest = [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2), (2, 2)]
    assert list(kernel_points((3, 3), remove_center=True)) == rest
    # What has no middle loses the point behind it.
    assert list(kernel_points((2, 4), remove_center=True)).count((1, 2)) == 0
    assert (1, 1) in kernel_points((3, 3))


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (2, 5)])
def test_number_of_points(kernel_size):
    assert num_points(kernel_size) == len(list(kernel_points(kernel_size)))
    without = len(list(kernel_points(kernel_size, remove_center=True)))
    assert num_points(kernel_size, remove_center=True) == without


def test_rows_are_padded_to_a_multiple_of_eight():
    assert [offset_mask_channels(*size) for size in [(4, 9), (1, 8), (1, 1), (3, 9)]] == [
        112,
        24,
        8,
        88,
    ]


def test_output_size_is_a_convolutions():
    geometry = ((3, 2), (2, 3), (1, 0), (2, 1))
    image = torch.zeros(1, 1, 11, 14)
    kernel_size, stride, padding, dilation = geometry
    weight = torch.zeros(1, 1, *kernel_size)
    expected = torch.nn.functional.conv2d(image, weight, None, stride, padding, dilation)
    assert output_size((11, 14), *geometry) == tuple(expected.shape[2:])
    with pytest.raises(ValueError, match="expected 2"):
        output_size((11, 14), (3, 3), (1,), (1, 1), (1, 1))


def test_offset_rows():
    assert offset_rows(groups=2, points=2).tolist() == [0, 1, 2, 3, 6, 7, 8, 9]


def test_pack_and_unpack():
    """One pixel, two groups of two points: offsets 0 to 3, masks 10 and 11, and so on."""
    offsets = torch.tensor([[[0.0, 1], [2, 3]], [[4, 5], [6, 7]]])[None, None, None]
    masks = torch.tensor([[10.0, 11], [12, 13]])[None, None, None]
    packed = pack(offsets, masks)
    assert packed.flatten().tolist() == [0, 1, 2, 3, 10, 11, 4, 5, 6, 7, 12, 13, 0, 0, 0, 0]
    unpacked = unpack(packed, groups=2, points=2)
    assert torch.equal(unpacked[0], offsets)
    assert torch.equal(unpacked[1], masks)
    assert unpacked[0].untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
