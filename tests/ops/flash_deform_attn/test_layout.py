"""How levels, locations and logits lie in their tensors, by hand-made examples."""

import re

import pytest
import torch

from dcnv4_mm.ops.flash_deform_attn.layout import (
    num_pixels,
    pack,
    read_spatial_shapes,
    sampling_locations,
    unpack,
)


@pytest.mark.parametrize("shapes", [[(4, 6), (1, 1)], torch.tensor([[4, 6], [1, 1]])])
def test_sizes_follow_one_another(shapes):
    assert read_spatial_shapes(shapes) == [4, 6, 1, 1]


def test_number_of_pixels():
    assert num_pixels([4, 6, 2, 3]) == 30
    with pytest.raises(ValueError, match="shorter"):
        num_pixels([4, 6, 2])


PAIRS = "spatial_shapes must be (H, W) for every level or an (L, 2) integer tensor, got a tensor "
BAD_SHAPES = [
    (torch.ones(2, 2), TypeError, PAIRS + "of shape (2, 2) and type torch.float32"),
    (torch.ones(4).long(), TypeError, PAIRS + "of shape (4,) and type torch.int64"),
    ([(4, 6), (0, 3)], ValueError, "at least one row and column, got 0 x 3 in spatial_shapes"),
    ([(3, 0)], ValueError, "every level must have at least one row and column, got 3 x 0"),
    ([], ValueError, "spatial_shapes must have at least one level, got none"),
    ([(4.0, 6)], TypeError, "must hold a pair of ints (H, W) for every level, got (4.0, 6)"),
    ([(4, 6, 1)], ValueError, "must hold a pair (H, W) for every level, got (4, 6, 1)"),
]


@pytest.mark.parametrize(("shapes", "error", "message"), BAD_SHAPES)
def test_bad_sizes(shapes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        read_spatial_shapes(shapes)


def test_pack_and_unpack():
    """One head, two levels of two points."""
    locations = torch.arange(8.0).view(1, 1, 1, 2, 2, 2)
    logits = torch.tensor([10.0, 11, 12, 13]).view(1, 1, 1, 2, 2)
    packed = pack(locations, logits)
    assert packed.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13]
    unpacked = unpack(torch.cat([packed, packed], -1), levels=2, num_points=2)
    assert torch.equal(unpacked[0], locations)
    assert torch.equal(unpacked[1], logits)


def test_locations_around_points():
    """Offsets are in pixels: one to the right in a level four wide is a quarter."""
    points = torch.tensor([[0.5, 0.25], [0.0, 1.0]]).view(1, 1, 2, 2)
    offsets = torch.tensor([[[1.0, 2.0]], [[3.0, -4.0]]]).view(1, 1, 1, 2, 1, 2)
    found = sampling_locations(points, offsets, [(8, 4), (2, 6)])
    assert found.shape == (1, 1, 1, 2, 1, 2)
    assert found.flatten().tolist() == [0.75, 0.5, 0.5, -1.0]


def test_locations_around_boxes():
    """As many offsets as there are points make half of the box."""
    boxes = torch.tensor([0.5, 0.25, 0.2, 0.4]).view(1, 1, 1, 4)
    offsets = torch.tensor([[2.0, -2.0], [1.0, 0.0]]).view(1, 1, 1, 1, 2, 2)
    found = sampling_locations(boxes, offsets, [(8, 4)])
    torch.testing.assert_close(found.flatten(), torch.tensor([0.6, 0.05, 0.55, 0.25]))


class _Locations(torch.nn.Module):
    """Locations in maps of the size of the images, and of half of it."""

    def forward(self, images, points, offsets):
        height, width = images.shape[-2:]
        return sampling_locations(points, offsets, [(height, width), (height // 2, width // 2)])


def test_sizes_stay_free_in_an_exported_graph():
    def inputs(height, width):
        generator = torch.Generator().manual_seed(height)
        shapes = (1, 3, height, width), (1, 5, 2, 2), (1, 5, 4, 2, 3, 2)
        return [torch.rand(shape, generator=generator) for shape in shapes]

    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        _Locations(), tuple(inputs(8, 6)), dynamic_shapes=({2: free, 3: free}, {}, {})
    )
    for size in [(8, 6), (20, 33)]:
        # The exact division of the eager mode.
        assert torch.equal(program.module()(*inputs(*size)), _Locations()(*inputs(*size)))


def test_other_reference_points():
    message = "reference_points must have 2 numbers (x, y) or 4 (x, y, width, height), got 3"
    with pytest.raises(ValueError, match=re.escape(message)):
        sampling_locations(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 1, 1, 2), [(8, 4)])
