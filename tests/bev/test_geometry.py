"""Geometry by hand: grid, pillars, cameras, ego-motion, augmentation, rotations, boxes."""

import math

import pytest
import torch

from dcnv4_mm.bev.geometry import (
    bev_augmentation_matrix,
    bev_cell_centers,
    box_corners,
    ego_motion,
    inverse_sigmoid,
    pillar_points,
    project_points,
    quaternion_to_matrix,
    warp_bev,
)

RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
FLIPS = [(False, False), (True, False), (False, True), (True, True)]


def camera(height=640, width=1600, focal=1260.0):
    """A camera at the LiDAR's position that faces forward: x right, y down, z forward."""
    axes = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    intrinsics = torch.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = focal
    intrinsics[0, 2], intrinsics[1, 2] = width / 2, height / 2
    return intrinsics @ axes


def test_inverse_sigmoid():
    x = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0])).isfinite().all()


def test_cells_run_along_x_first():
    centers = bev_cell_centers((2, 4))
    assert centers[1].tolist() == [0.375, 0.25]
    assert centers[4].tolist() == [0.125, 0.75]


def test_pillars():
    points = pillar_points((200, 200), 4, RANGE)
    assert points.shape == (40000, 4, 3)
    # Index y * W + x; x to the right, y forward.
    x, y = 30, 170
    expected = torch.tensor([(30.5 / 200 - 0.5) * 102.4, (170.5 / 200 - 0.5) * 102.4])
    torch.testing.assert_close(points[y * 200 + x, 0, :2], expected)
    heights = torch.tensor([-4.5, -2.1667, 0.1667, 2.5])
    torch.testing.assert_close(points[0, :, 2], heights, rtol=0, atol=1e-4)


def test_projection_by_hand():
    points = torch.tensor([[0.0, 10, 0], [1.0, 10, 1], [0.0, -10, 0], [9.0, 10, 0], [0, 0, 0]])
    projected, inside = project_points(points, camera()[None], (640, 1600))
    assert projected[0, 0].tolist() == [0.5, 0.5]
    pixel = torch.tensor([(800 + 126) / 1600, (320 - 126) / 640])
    torch.testing.assert_close(projected[0, 1], pixel)
    assert inside[0].tolist() == [True, True, False, False, False]
    assert projected.isfinite().all()


@pytest.mark.parametrize("padded", [(544, 1376), (640, 1600)])
def test_positions_are_fractions_of_the_padded_image(padded):
    """The feature cell under a known point, for an image that needed padding."""
    scale, stride = 544 / 640, 16
    shrink = torch.diag(torch.tensor([scale, scale, 1.0, 1.0]))
    point = torch.tensor([[3.0, 12.0, -1.0]])
    projected, _ = project_points(point, (shrink @ camera())[None], padded)
    cell = projected[0, 0] * torch.tensor([padded[1] / stride, padded[0] / stride])
    pixel = torch.tensor([(800 + 1260 * 3 / 12) * scale, (320 + 1260 / 12) * scale])
    torch.testing.assert_close(cell, pixel / stride)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projection_ignores_autocast(dtype):
    """What a camera sees does not depend on the precision around it."""
    points = pillar_points((50, 50), 4, RANGE).flatten(0, 1)
    lidar_to_image = camera()[None]
    expected = project_points(points, lidar_to_image, (640, 1600))
    with torch.autocast("cpu", dtype=dtype):
        result = project_points(points, lidar_to_image, (640, 1600))
    assert result[0].dtype == torch.float32
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
def test_projection_ignores_tf32():
    """The same inside the encoder."""
    points = pillar_points((50, 50), 4, RANGE).flatten(0, 1)
    expected = project_points(points, camera()[None], (640, 1600))[1]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    result = project_points(points.cuda(), camera()[None].cuda(), (640, 1600))[1]
    torch.set_float32_matmul_precision(before)
    assert torch.equal(result.cpu(), expected)


def test_ego_motion_leads_from_the_other_frame_to_the_current_one():
    """By a car that drives 5 m forward and turns left by 90 degrees in between."""
    mounting = torch.eye(4, dtype=torch.float64)
    mounting[:3, 3] = torch.tensor([0.9, 0.0, 1.8])
    past, current = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    current[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    current[0, 3] = 5.0
    world = torch.tensor([20.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    in_past = torch.linalg.solve(past @ mounting, world)
    in_current = torch.linalg.solve(current @ mounting, world)
    transform = ego_motion(current, past, mounting)
    torch.testing.assert_close(transform @ in_past, in_current)
    # The point is 15 m ahead of where the car was going, so to the right of it now.
    torch.testing.assert_close((mounting @ in_current)[:2], torch.tensor([3.0, -15.0]).double())


@pytest.mark.parametrize(("flip_x", "flip_y"), FLIPS)
def test_warp_moves_content_as_the_matrix_moves_points(flip_x, flip_y):
    """A blob at an object's cell lies at the augmented object's cell afterwards."""
    size, extent = 100, 102.4
    matrix = bev_augmentation_matrix(math.radians(20), 1.05, flip_x, flip_y)
    point = torch.tensor([20.0, -12.0, 1.0], dtype=torch.float64)
    bev = torch.zeros(1, 1, size, size)
    column, row = ((point[:2] / extent + 0.5) * size).long().tolist()
    bev[0, 0, row, column] = 1
    warped = warp_bev(bev, matrix[None])[0, 0]
    rows, columns = torch.meshgrid(*[torch.arange(size) + 0.5] * 2, indexing="ij")
    found = torch.stack([(warped * axis).sum() for axis in (columns, rows)]) / warped.sum()
    expected = ((matrix @ point)[:2] / extent + 0.5) * size
    assert (found - expected).abs().max() < 1


def test_augmentation_matrix_by_hand():
    matrix = bev_augmentation_matrix(math.pi / 2, 2.0, False, True)
    moved = matrix @ torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(moved, torch.tensor([0.0, -2.0, 6.0], dtype=torch.float64))


def random_quaternions(count):
    quaternions = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    # Near the degenerate angles too: half a turn about each axis, none at all.
    special = torch.eye(4) + 1e-7 * torch.ones(4)
    return torch.nn.functional.normalize(
        torch.cat((quaternions.double(), special.double())), dim=-1
    )


def test_quaternions():
    """Rotations are compared as matrices, where q and -q are one."""
    quaternions = random_quaternions(50).requires_grad_()
    matrices = quaternion_to_matrix(quaternions)
    identity = torch.eye(3).double().expand_as(matrices)
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), identity)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(len(matrices)).double())
    assert torch.equal(quaternion_to_matrix(-quaternions), matrices)
    matrices.pow(2).sum().backward()
    assert quaternions.grad.isfinite().all()


def test_quaternion_by_hand():
    quarter_about_z = torch.tensor([math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)])
    expected = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(quaternion_to_matrix(quarter_about_z), expected)


def test_corners_of_a_bus():
    """Width, length, height in this order; the length lies along x, the front first."""
    corners = box_corners(torch.eye(3), torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 11, 4]))
    assert corners[0].tolist() == [6.5, 3.5, 5.0]
    assert corners[:4, 0].tolist() == [6.5] * 4
    assert corners[4:, 0].tolist() == [-4.5] * 4
    extent = corners.amax(0) - corners.amin(0)
    assert extent.tolist() == [11, 3, 4]
