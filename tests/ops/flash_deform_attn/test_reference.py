"""The references against what can be worked out by hand, and against plain loops."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dcnv4_mm.ops.flash_deform_attn import layout
from dcnv4_mm.ops.flash_deform_attn.reference import (
    flash_deform_attn_backward_reference,
    flash_deform_attn_forward_reference,
    ms_deform_attn_backward_reference,
    ms_deform_attn_forward_reference,
)

LEVELS = {
    "one_level": [(4, 5)],
    "two_levels": [(4, 3), (2, 2)],
    "growing": [(1, 1), (1, 3), (5, 2)],
}


class Problem(NamedTuple):
    value: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor
    level_sizes: list[int]


def make_problem(shapes, *, batch=2, queries=3, heads=2, points=3, width=2, seed=0):
    """Locations from outside the left to outside the right edge, float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = layout.read_spatial_shapes(shapes)
    options = dict(generator=generator, dtype=torch.float64)
    shape = (batch, queries, heads, len(shapes), points)
    return Problem(
        torch.randn(batch, layout.num_pixels(sizes), heads, width, **options),
        1.6 * torch.rand(*shape, 2, **options) - 0.3,
        torch.randn(shape, **options),
        sizes,
    )


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


def loop_forward(value, locations, weights, shapes):
    """Deformable attention by loops over everything, straight from the formula."""
    batch, queries, heads, levels, points = weights.shape
    width = value.shape[-1]
    output = np.zeros((batch, queries, heads * width))
    for n, q, g, d in np.ndindex(batch, queries, heads, width):
        start = 0
        for level in range(levels):
            rows, columns = shapes[level]
            image = value[n, start : start + rows * columns, g, d].reshape(rows, columns)
            start += rows * columns
            for p in range(points):
                x, y = locations[n, q, g, level, p]
                sample = sample_pixel(image, y * rows - 0.5, x * columns - 0.5)
                output[n, q, g * width + d] += weights[n, q, g, level, p] * sample
    return output


def loop_softmax(logits):
    flat = np.exp(logits).reshape(*logits.shape[:3], -1)
    return (flat / flat.sum(-1, keepdims=True)).reshape(logits.shape)


# Places in pixels of a 2 x 3 image; (x + 0.5) / 3 and (y + 0.5) / 2 are the locations.
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
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64).view(1, 6, 1, 1)
    location = torch.tensor([(x + 0.5) / 3, (y + 0.5) / 2], dtype=torch.float64)
    location = location.view(1, 1, 1, 1, 1, 2)
    for weight in (1.0, -2.0):
        weights = torch.full((1, 1, 1, 1, 1), weight, dtype=torch.float64)
        output = ms_deform_attn_forward_reference(value, location, weights, [2, 3])
        assert output.item() == pytest.approx(weight * expected, abs=1e-14)


def test_levels_follow_one_another_and_share_one_softmax():
    # A level of one pixel of 8, then one of 1 x 2 pixels of 1 and 3; a point at each pixel.
    value = torch.tensor([8.0, 1.0, 3.0], dtype=torch.float64).view(1, 3, 1, 1)
    locations = torch.tensor([[[0.5, 0.5], [9.0, 0.5]], [[0.25, 0.5], [0.75, 0.5]]])
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log()
    packed = layout.pack(locations[None, None, None], logits[None, None, None]).double()
    output = flash_deform_attn_forward_reference(value, packed, [1, 1, 1, 2], 2)
    # The second point is outside: it adds nothing, but keeps its two tenths.
    assert output.item() == pytest.approx((1 * 8 + 2 * 0 + 3 * 1 + 4 * 3) / 10, abs=1e-7)


def test_pack_and_unpack_are_inverse():
    locations, logits = torch.randn(2, 3, 4, 5, 6, 2), torch.randn(2, 3, 4, 5, 6)
    packed = layout.pack(locations, logits)
    assert packed.shape == (2, 3, 4, 90)
    assert packed[1, 2, 3, 2 * (2 * 6 + 1) + 1] == locations[1, 2, 3, 2, 1, 1]
    assert packed[1, 2, 3, 60 + 2 * 6 + 1] == logits[1, 2, 3, 2, 1]
    for tensor, unpacked in zip((locations, logits), layout.unpack(packed, 5, 6), strict=True):
        assert torch.equal(tensor, unpacked)


def test_sampling_locations_by_hand():
    offsets = torch.tensor([[1.0, 2.0], [-3.0, 4.0]]).view(1, 1, 1, 1, 2, 2)
    points = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    locations = layout.sampling_locations(points, offsets, [(8, 4)])
    # Offsets in pixels of a level of 8 rows and 4 columns.
    expected = torch.tensor([[0.5 + 1 / 4, 0.25 + 2 / 8], [0.5 - 3 / 4, 0.25 + 4 / 8]])
    assert torch.equal(locations.view(2, 2), expected)
    boxes = torch.tensor([0.5, 0.25, 0.5, 0.125]).view(1, 1, 1, 4)
    locations = layout.sampling_locations(boxes, offsets, torch.tensor([[8, 4]]))
    expected = torch.tensor([[0.5 + 0.125, 0.25 + 0.0625], [0.5 - 0.375, 0.25 + 0.125]])
    assert torch.equal(locations.view(2, 2), expected)


@pytest.mark.parametrize("shapes", LEVELS.values(), ids=LEVELS)
def test_forward_equals_loops(shapes):
    problem = make_problem(shapes)
    arrays = [tensor.numpy() for tensor in problem[:3]]
    output = ms_deform_attn_forward_reference(*problem)
    expected = loop_forward(*arrays, shapes)
    np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=1e-13)

    packed = layout.pack(problem.locations, problem.weights)
    output = flash_deform_attn_forward_reference(problem.value, packed, problem.level_sizes, 3)
    expected = loop_forward(arrays[0], arrays[1], loop_softmax(arrays[2]), shapes)
    np.testing.assert_allclose(output.numpy(), expected, rtol=0, atol=1e-13)


def assert_gradients(forward, backward, inputs):
    """Compares directional derivatives with central differences."""
    output = forward(*inputs)
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    gradients = backward(grad_output, *inputs)
    assert len(gradients) == len(inputs)
    step = 1e-7
    for index, (tensor, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        for _ in range(4):
            direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            losses = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[index] = tensor + sign * step * direction
                losses.append((forward(*moved) * grad_output).sum())
            numeric = (losses[0] - losses[1]) / (2 * step)
            torch.testing.assert_close(
                (gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-5, msg=str(index)
            )


@pytest.mark.parametrize("shapes", LEVELS.values(), ids=LEVELS)
def test_backward_equals_finite_differences(shapes):
    problem = make_problem(shapes)
    sizes = problem.level_sizes
    assert_gradients(
        lambda *tensors: ms_deform_attn_forward_reference(*tensors, sizes),
        lambda *tensors: ms_deform_attn_backward_reference(*tensors, sizes),
        problem[:3],
    )
    assert_gradients(
        lambda *tensors: flash_deform_attn_forward_reference(*tensors, sizes, 3),
        lambda *tensors: flash_deform_attn_backward_reference(*tensors, sizes, 3),
        [problem.value, layout.pack(problem.locations, problem.weights)],
    )


def test_point_exactly_at_minus_one_has_no_gradient():
    value = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    # In pixels of a 2 x 2 image: x = -1, just inside of it, and exactly 0.
    x = torch.tensor([-0.25, -0.25 + 1e-12, 0.25], dtype=torch.float64)
    locations = torch.stack([x, torch.full_like(x, 0.25)], -1).view(1, 1, 1, 1, 3, 2)
    weights = torch.ones(1, 1, 1, 1, 3, dtype=torch.float64)
    grad_output = torch.ones(1, 1, 1, dtype=torch.float64)
    _, grad, _ = ms_deform_attn_backward_reference(grad_output, value, locations, weights, [2, 2])
    # Inside, the sample grows by 1 per pixel, 2 per unit. At an integer the derivative is the one
    # towards the larger coordinate: 1 - 1 = 0 here.
    assert grad.view(3, 2)[:, 0].tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
def test_locations_that_are_not_finite_contribute_nothing(bad):
    problem = make_problem(LEVELS["two_levels"])
    locations = problem.locations.clone()
    locations[..., 1, 1, 0] = bad
    weights = problem.weights.clone()
    weights[..., 1, 1] = 0.0
    output = ms_deform_attn_forward_reference(
        problem.value, locations, problem.weights, problem.level_sizes
    )
    assert torch.equal(output, ms_deform_attn_forward_reference(*problem._replace(weights=weights)))
    _, grad_locations, grad_weights = ms_deform_attn_backward_reference(
        output, problem.value, locations, problem.weights, problem.level_sizes
    )
    assert grad_locations.isfinite().all()
    assert not grad_locations[..., 1, 1, :].any()
    assert not grad_weights[..., 1, 1].any()
