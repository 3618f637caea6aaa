"""The reference against what can be worked out by hand, and against plain loops."""

import math

import numpy as np
import pytest
import torch

from dcnv4_mm.ops.dcnv4 import layout
from dcnv4_mm.ops.dcnv4.reference import dcnv4_backward_reference, dcnv4_forward_reference

# One row per case: kernel, stride, padding, dilation, groups, D, offset_scale, remove_center.
GEOMETRIES = {
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1), 2, 3, 1.0, False),
    "without_center": ((3, 3), (1, 1), (1, 1), (1, 1), 1, 2, 1.0, True),
    "stride": ((3, 3), (2, 3), (1, 1), (1, 1), 2, 2, 1.0, False),
    "scaled_dilated": ((3, 3), (1, 1), (2, 2), (2, 2), 1, 2, 0.5, False),
    "rectangular": ((1, 5), (1, 1), (0, 2), (1, 1), 3, 1, 2.0, False),
    "even": ((2, 4), (1, 2), (1, 0), (3, 1), 1, 3, 0.7, False),
    "one_point": ((1, 1), (1, 1), (0, 0), (1, 1), 1, 2, 1.0, False),
}


def sample_pixel(image: np.ndarray, y: float, x: float) -> float:
    """Bilinear value of one channel at one place, corner by corner."""
    height, width = image.shape
    if not (y > -1 and x > -1 and y < height and x < width):
        return 0.0
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def loop_forward(value, offset_mask, kernel, stride, padding, dilation, groups, scale, no_center):
    """DCNv4 by loops over everything, straight from the formula."""
    batch, _, _, channels = value.shape
    _, height_out, width_out, _ = offset_mask.shape
    points = kernel[0] * kernel[1] - no_center
    width_of_group = channels // groups
    reach = [dilation[i] * (kernel[i] - 1) // 2 for i in (0, 1)]
    output = np.zeros((batch, height_out, width_out, channels))
    for n, oh, ow, c in np.ndindex(*output.shape):
        row = offset_mask[n, oh, ow, (c // width_of_group) * 3 * points :]
        k = 0
        for i in range(kernel[1]):
            for j in range(kernel[0]):
                if no_center and i == kernel[1] // 2 and j == kernel[0] // 2:
                    continue
                x = reach[1] - padding[1] + ow * stride[1]
                x += (i * dilation[1] - reach[1] + row[2 * k]) * scale
                y = reach[0] - padding[0] + oh * stride[0]
                y += (j * dilation[0] - reach[0] + row[2 * k + 1]) * scale
                output[n, oh, ow, c] += row[2 * points + k] * sample_pixel(value[n, :, :, c], y, x)
                k += 1
    return output


def make_inputs(geometry, size=(5, 4), batch=2, dtype=torch.float64, seed=0):
    kernel, stride, padding, dilation, groups, width, _, no_center = geometry
    generator = torch.Generator().manual_seed(seed)
    size_out = layout.output_size(size, kernel, stride, padding, dilation)
    points = layout.num_points(kernel, no_center)
    value = torch.randn(batch, *size, groups * width, generator=generator, dtype=torch.float64)
    offset_mask = 1.5 * torch.randn(
        batch,
        *size_out,
        layout.offset_mask_channels(groups, points),
        generator=generator,
        dtype=torch.float64,
    )
    return value.to(dtype), offset_mask.to(dtype)


def one_point(value, x, y, mask=1.0):
    """Samples a (H, W) image at one place relative to its pixel (0, 0) by a 1x1 kernel."""
    height, width = value.shape
    offset_mask = torch.tensor([x, y, mask], dtype=torch.float64).expand(1, height, width, 3)
    geometry = ([1, 1], [1, 1], [0, 0], [1, 1], 1, 1.0, False)
    output = dcnv4_forward_reference(value.view(1, height, width, 1), offset_mask, *geometry)
    return output[0, 0, 0, 0].item()


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, 1.0),  # the pixel itself
        (1, 0, 2.0),  # x goes along the width
        (0, 1, 4.0),  # y goes along the height
        (2, 1, 6.0),
        (0.5, 0, 1.5),
        (0, 0.5, 2.5),
        (0.25, 0.5, 2.75),
        (-0.25, 0, 0.75),  # fades out towards the zeros outside
        (-1, 0, 0.0),
        (2.75, 1, 1.5),
        (3, 0, 0.0),
        (0, 2, 0.0),
        (1e30, 0, 0.0),
        (math.inf, 0, 0.0),
        (0, math.nan, 0.0),
    ],
)
def test_hand_computed(x, y, expected):
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    assert one_point(image, x, y) == pytest.approx(expected, abs=1e-15)
    assert one_point(image, x, y, mask=-2.0) == pytest.approx(-2 * expected, abs=1e-15)


def test_points_run_over_columns_first():
    assert list(layout.kernel_points((2, 3))) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert list(layout.kernel_points((3, 3), remove_center=True))[3:5] == [(0, 1), (2, 1)]


def test_zero_offsets_are_a_box_filter():
    value = torch.arange(25.0, dtype=torch.float64).view(1, 5, 5, 1)
    offset_mask = layout.pack(
        torch.zeros(1, 5, 5, 1, 9, 2, dtype=torch.float64),
        torch.ones(1, 5, 5, 1, 9, dtype=torch.float64),
    )
    output = dcnv4_forward_reference(
        value, offset_mask, [3, 3], [1, 1], [1, 1], [1, 1], 1, 1.0, False
    )
    box = torch.nn.functional.avg_pool2d(value.view(1, 1, 5, 5), 3, 1, 1) * 9
    torch.testing.assert_close(output.view(1, 1, 5, 5), box, rtol=0, atol=1e-12)


def test_pack_and_unpack_are_inverse():
    offsets, masks = torch.randn(2, 3, 4, 5, 9, 2), torch.randn(2, 3, 4, 5, 9)
    offset_mask = layout.pack(offsets, masks)
    assert offset_mask.shape == (2, 3, 4, 136)
    for packed, unpacked in zip((offsets, masks), layout.unpack(offset_mask, 5, 9), strict=True):
        assert torch.equal(packed, unpacked)
    marked = torch.zeros(136)
    marked[layout.offset_rows(5, 9)] = 1
    marked_offsets, marked_masks = layout.unpack(marked.view(1, 1, 1, -1), 5, 9)
    assert marked_offsets.all()
    assert not marked_masks.any()


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_forward_equals_loops(geometry):
    value, offset_mask = make_inputs(geometry)
    kernel, stride, padding, dilation, groups, _, scale, no_center = geometry
    output = dcnv4_forward_reference(
        value, offset_mask, kernel, stride, padding, dilation, groups, scale, no_center
    )
    expected = loop_forward(
        value.numpy(),
        offset_mask.numpy(),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        scale,
        no_center,
    )
    np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_backward_equals_finite_differences(geometry):
    value, offset_mask = make_inputs(geometry, batch=1)
    kernel, stride, padding, dilation, groups, _, scale, no_center = geometry
    arguments = (kernel, stride, padding, dilation, groups, scale, no_center)
    output = dcnv4_forward_reference(value, offset_mask, *arguments)
    grad_output = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    gradients = dcnv4_backward_reference(grad_output, value, offset_mask, *arguments)
    step = 1e-6
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        directions = [
            torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            for tensor in (value, offset_mask)
        ]
        for index, direction in enumerate(directions):
            losses = []
            for sign in (1, -1):
                inputs = [value, offset_mask]
                inputs[index] = inputs[index] + sign * step * direction
                losses.append((dcnv4_forward_reference(*inputs, *arguments) * grad_output).sum())
            numeric = (losses[0] - losses[1]) / (2 * step)
            torch.testing.assert_close(
                (gradients[index] * direction).sum(), numeric, rtol=1e-7, atol=1e-6
            )


def test_point_exactly_at_minus_one_has_no_gradient():
    value = torch.ones(1, 2, 2, 1, dtype=torch.float64)
    offset_mask = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).expand(1, 2, 2, 3)
    arguments = ([1, 1], [1, 1], [0, 0], [1, 1], 1, 1.0, False)
    gradients = dcnv4_backward_reference(torch.ones_like(value), value, offset_mask, *arguments)
    # Only the right column's points lie inside, on the left column's pixels.
    assert gradients[0][0, :, :, 0].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert gradients[1][0, :, 0].abs().max() == 0
    # At an integer the derivative is the one towards the larger coordinate: 1 - 1 = 0 here.
    assert gradients[1][0, 0, 1].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
def test_offsets_that_are_not_finite_contribute_nothing(bad):
    geometry = GEOMETRIES["3x3"]
    kernel, stride, padding, dilation, groups, _, scale, no_center = geometry
    arguments = (kernel, stride, padding, dilation, groups, scale, no_center)
    value, offset_mask = make_inputs(geometry)
    offsets, masks = (part.clone() for part in layout.unpack(offset_mask, groups, 9))
    offsets[..., 4, 0] = bad
    masks[..., 4] = 3.0
    without = masks.clone()
    without[..., 4] = 0.0
    finite = offsets.clone()
    finite[..., 4, 0] = 0.0
    output = dcnv4_forward_reference(value, layout.pack(offsets, masks), *arguments)
    expected = dcnv4_forward_reference(value, layout.pack(finite, without), *arguments)
    assert torch.equal(output, expected)
    gradients = dcnv4_backward_reference(output, value, layout.pack(offsets, masks), *arguments)
    assert all(gradient.isfinite().all() for gradient in gradients)
    grad_offsets, grad_masks = layout.unpack(gradients[1], groups, 9)
    assert grad_offsets[..., 4, :].abs().max() == 0
    assert grad_masks[..., 4].abs().max() == 0
