"""The reference against what can be worked out by hand, plain loops, and the path it replaces."""

import math

import numpy as np
import pytest
import torch
from ops.bev_cross_attn.problems import make_problem

from dcnv4_mm.ops.bev_cross_attn.reference import (
    bev_cross_attn_backward_reference,
    bev_cross_attn_forward_reference,
)
from dcnv4_mm.ops.flash_deform_attn.layout import pack
from dcnv4_mm.ops.flash_deform_attn.reference import ms_deform_attn_forward_reference

# Arguments of make_problem.
PROBLEMS = {
    "one_camera": dict(cameras=1, pillar=1, density=1.0),
    "ragged": dict(cameras=3, pillar=2),
    "odd": dict(cameras=2, points=3, pillar=2, shapes=[(1, 1), (1, 3), (5, 2)]),
    "long_pillar": dict(cameras=2, points=2, pillar=3),
}
SMALL = dict(queries=4, width=2)


def single(*numbers):
    """Numbers for the only batch, head and channel."""
    return torch.tensor(numbers, dtype=torch.float64)


# Columns of a level of 1 x 4 pixels 1, 2, 4, 8: of the reference in units of the image, of the
# offset in pixels.
@pytest.mark.parametrize(
    ("reference", "offset", "expected"),
    [
        (0.125, 0.0, 1.0),  # the centre of the first pixel
        (0.125, 1.0, 2.0),
        (0.5, 0.0, 3.0),  # between the second and the third
        (0.5, -0.25, 2.5),
        (0.875, 0.5, 4.0),  # half a pixel outside: half of the last
        (0.875, 1.0, 0.0),
        (1.25, -1.5, 8.0),  # a reference outside the image counts as well
        (-1e30, 0.0, 0.0),
        (math.nan, 0.0, 0.0),
    ],
)
def test_hand_computed(reference, offset, expected):
    value = single(1, 2, 4, 8).view(1, 1, 4, 1, 1)
    points = single(offset, 0.0, 7.0).view(1, 1, 1, 3)
    reference_points = single(reference, 0.5).view(1, 1, 1, 1, 2)
    bev_mask = torch.ones(1, 1, 1, dtype=torch.bool)
    output = bev_cross_attn_forward_reference(value, points, reference_points, bev_mask, [1, 4], 1)
    assert output.item() == expected


def test_mean_over_the_cameras_that_hit():
    # Three cameras of one pixel; the points lie in its middle.
    value = single(1, 10, 100).view(1, 3, 1, 1, 1)
    reference_points = torch.full((1, 3, 4, 1, 2), 0.5, dtype=torch.float64)
    bev_mask = torch.tensor([[[1, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]]], dtype=torch.bool)
    # What belongs to a camera that does not see a query is not read.
    reference_points[~bev_mask] = math.nan
    points = torch.zeros(1, 4, 1, 3, dtype=torch.float64)
    points[0, 2] = math.nan
    output = bev_cross_attn_forward_reference(value, points, reference_points, bev_mask, [1, 1], 1)
    assert output.flatten().tolist() == pytest.approx([1, 37, 0, 55], abs=1e-13)


def test_points_take_the_pillar_in_turn_on_every_level():
    # A pillar of two points, at pixels 0 and 2 of the first level, 0 and 1 of the second.
    value = single(1, 2, 4, 10, 20).view(1, 1, 5, 1, 1)
    reference_points = single(1 / 6, 0.5, 5 / 6, 0.5).view(1, 1, 1, 2, 2)
    logits = single(1, 2, 3, 4, 5, 6).log()
    # Three points per level; the third goes out from the first of the pillar, by one pixel.
    offsets = torch.zeros(2, 3, 2, dtype=torch.float64)
    offsets[:, 2, 0] = 1
    points = torch.cat([offsets.flatten(), logits]).view(1, 1, 1, 18)
    bev_mask = torch.ones(1, 1, 1, dtype=torch.bool)
    output = bev_cross_attn_forward_reference(
        value, points, reference_points, bev_mask, [1, 3, 1, 2], 3
    )
    # The second level's are at -1/6, 7/6 and 5/6.
    samples = [1, 4, 2, 10 * 5 / 6, 20 * 5 / 6, 10 * 1 / 6 + 20 * 5 / 6]
    expected = sum(w * s for w, s in zip((1, 2, 3, 4, 5, 6), samples, strict=True)) / 21
    assert output.item() == pytest.approx(expected, rel=1e-14)


def sample_pixel(image, y, x):
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


def loop_forward(problem):
    """The formula by loops over everything."""
    value, reference_points, bev_mask = (
        tensor.numpy() for tensor in (problem.value, problem.reference_points, problem.bev_mask)
    )
    offsets, logits = (tensor.numpy() for tensor in problem.points())
    batch, queries, heads, levels, points = logits.shape
    width, pillar = value.shape[-1], reference_points.shape[3]
    output = np.zeros((batch, queries, heads * width))
    for b, q, g, d in np.ndindex(batch, queries, heads, width):
        shares = np.exp(logits[b, q, g]) / np.exp(logits[b, q, g]).sum()
        seeing = [camera for camera in range(value.shape[1]) if bev_mask[b, camera, q]]
        for camera in seeing:
            start = 0
            for level in range(levels):
                rows, columns = problem.level_sizes[2 * level : 2 * level + 2]
                image = value[b, camera, start : start + rows * columns, g, d]
                start += rows * columns
                for p in range(points):
                    x, y = reference_points[b, camera, q, p % pillar] * (columns, rows)
                    x, y = x + offsets[b, q, g, level, p, 0], y + offsets[b, q, g, level, p, 1]
                    sample = sample_pixel(image.reshape(rows, columns), y - 0.5, x - 0.5)
                    output[b, q, g * width + d] += shares[level, p] * sample / len(seeing)
    return output


@pytest.mark.parametrize("options", PROBLEMS.values(), ids=PROBLEMS)
def test_forward_equals_loops(options):
    problem = make_problem(**SMALL, **options)
    output = bev_cross_attn_forward_reference(*problem.inputs())
    np.testing.assert_allclose(output.numpy(), loop_forward(problem), rtol=0, atol=1e-13)


def plain_path(problem):
    """What the operator replaces: locations and weights in memory, one attention per camera."""
    offsets, logits = problem.points()
    shapes = torch.tensor(problem.level_sizes, dtype=torch.float64).view(-1, 2)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    total = 0.0
    for camera in range(problem.value.shape[1]):
        pillar = problem.reference_points[:, camera]
        chosen = torch.arange(problem.num_points) % pillar.shape[2]
        # [B, Q, G, L, P, 2]
        locations = pillar[:, :, chosen][:, :, None, None] + offsets / shapes.flip(-1)[:, None]
        output = ms_deform_attn_forward_reference(
            problem.value[:, camera], locations, weights, problem.level_sizes
        )
        total = total + torch.where(problem.bev_mask[:, camera, :, None], output, 0.0)
    return total / problem.bev_mask.sum(1).clamp(min=1).unsqueeze(-1)


@pytest.mark.parametrize("options", PROBLEMS.values(), ids=PROBLEMS)
def test_equals_the_plain_path(options):
    """Output and gradients, those of the plain path by autograd, in float64."""
    problem = make_problem(**options)
    leaves = [tensor.requires_grad_() for tensor in (problem.value, problem.offsets_logits)]
    expected = plain_path(problem)
    gradients = torch.autograd.grad(expected, leaves, problem.grad_output)
    with torch.no_grad():
        output = bev_cross_attn_forward_reference(*problem.inputs())
        results = bev_cross_attn_backward_reference(problem.grad_output, *problem.inputs())
    for actual, wanted in zip((output, *results), (expected, *gradients), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", PROBLEMS.values(), ids=PROBLEMS)
def test_backward_equals_finite_differences(options):
    problem = make_problem(**SMALL, **options)
    gradients = bev_cross_attn_backward_reference(problem.grad_output, *problem.inputs())
    generator = torch.Generator().manual_seed(1)
    step = 1e-7
    for name, gradient in zip(("value", "offsets_logits"), gradients, strict=True):
        tensor = getattr(problem, name)
        for _ in range(4):
            direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            losses = []
            for sign in (1, -1):
                moved = problem._replace(**{name: tensor + sign * step * direction})
                output = bev_cross_attn_forward_reference(*moved.inputs())
                losses.append((output * problem.grad_output).sum())
            numeric = (losses[0] - losses[1]) / (2 * step)
            torch.testing.assert_close(
                (gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-5, msg=name
            )


def test_a_query_that_no_camera_sees_has_no_gradient():
    problem = make_problem()
    problem.bev_mask[:, :, 3] = False
    # Its numbers may be anything.
    problem.offsets_logits[:, 3] = math.nan
    output = bev_cross_attn_forward_reference(*problem.inputs())
    grad_value, grad_points = bev_cross_attn_backward_reference(
        problem.grad_output, *problem.inputs()
    )
    assert not output[:, 3].any()
    assert not grad_points[:, 3].any()
    assert grad_value.isfinite().all()


def test_packing_is_that_of_deformable_attention():
    problem = make_problem()
    assert torch.equal(pack(*problem.points()), problem.offsets_logits)
