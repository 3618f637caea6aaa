"""Geometry of BEVFormerV2: cameras, ego-motion, the BEV grid, rotations and boxes.

The axes: LiDAR x right, y forward, z up; camera x right, y down, z forward; the BEV grid's columns
run along LiDAR x, its rows along LiDAR y. Whatever the autocast and TF32 settings, projections are
sums of float32 products: a coarser one would move points in and out of the images.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "allocentric_to_egocentric",
    "bev_augmentation_matrix",
    "bev_cell_centers",
    "box_corners",
    "ego_motion",
    "from_fractions",
    "in_range",
    "inverse_sigmoid",
    "pillar_points",
    "project_points",
    "quaternion_to_matrix",
    "unproject",
    "warp_bev",
]

# Points nearer to the camera's plane than this count as behind it (metres).
_MIN_DEPTH = 1e-5


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x``, clamped to [0, 1] first and finite at its ends."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def bev_cell_centers(shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Centres of the cells of a BEV grid as fractions of its extent.

    Args:
        shape: (H, W) cells.
        device: Where the result lies.

    Returns:
        (H * W, 2) as (x, y), row by row, float32.
    """
    height, width = shape
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / height,
        (torch.arange(width, device=device) + 0.5) / width,
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def pillar_points(
    shape: tuple[int, int],
    num_points: int,
    point_cloud_range: Sequence[float],
    device: torch.device | None = None,
) -> Tensor:
    """Points above the centre of every BEV cell, the lowest and highest half a metre off the range.

    Args:
        shape: (H, W) cells.
        num_points: Points D per cell.
        point_cloud_range: x, y, z of the lower corner, then of the upper one, in metres.
        device: Where the result lies.

    Returns:
        (H * W, D, 3), metres in the LiDAR frame.
    """
    x, y = bev_cell_centers(shape, device).unbind(-1)
    margin = 0.5 / (point_cloud_range[5] - point_cloud_range[2])
    z = torch.linspace(margin, 1 - margin, num_points, device=device)
    size = (len(x), num_points)
    parts = (x[:, None].expand(size), y[:, None].expand(size), z[None].expand(size))
    return from_fractions(torch.stack(parts, dim=-1), point_cloud_range)


def from_fractions(fractions: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
    """Fractions (..., 3) of a range to metres; the range is never copied to the device."""
    bounds = zip(fractions.unbind(-1), point_cloud_range[:3], point_cloud_range[3:], strict=True)
    return torch.stack([x * (upper - lower) + lower for x, lower, upper in bounds], dim=-1)


def in_range(points: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
    """Whether points (..., 3) lie in a range; the range is never copied to the device."""
    bounds = zip(points.unbind(-1), point_cloud_range[:3], point_cloud_range[3:], strict=True)
    inside = [(x >= lower) & (x <= upper) for x, lower, upper in bounds]
    return inside[0] & inside[1] & inside[2]


def project_points(
    points: Tensor, lidar_to_image: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Projects points into the images of cameras.

    Args:
        points: (P, 3), metres in the LiDAR frame.
        lidar_to_image: (..., 4, 4), to homogeneous pixels.
        image_size: (H, W) that the coordinates become fractions of: the padded size, which the
            feature maps cover.

    Returns:
        Points (..., P, 2) as fractions (x, y) of the image, float32, and whether they lie in
        front of the camera and inside the image, (..., P).
    """
    x, y, z = points.float().unbind(-1)
    # [..., 4, 4, 1]; products are summed by hand, since a matmul may be rounded to TF32 or less.
    rows = lidar_to_image.float().unsqueeze(-1)
    u, v, depth = (
        rows[..., i, 0, :] * x
        + rows[..., i, 1, :] * y
        + rows[..., i, 2, :] * z
        + rows[..., i, 3, :]
        for i in range(3)
    )
    nearest = depth.clamp(min=_MIN_DEPTH)
    height, width = image_size
    x, y = u / nearest / width, v / nearest / height
    inside = (x > 0) & (x < 1) & (y > 0) & (y < 1) & (depth > _MIN_DEPTH)
    return torch.stack((x, y), dim=-1), inside


def ego_motion(
    current_ego_to_global: Tensor, other_ego_to_global: Tensor, lidar_to_ego: Tensor
) -> Tensor:
    """Transform from the LiDAR frame of another frame to the current one.

    Args:
        current_ego_to_global: (4, 4), at the current LiDAR timestamp.
        other_ego_to_global: (4, 4), at the other LiDAR timestamp.
        lidar_to_ego: (4, 4), the mounting of the LiDAR.

    Returns:
        (4, 4), float64.
    """
    mounting = lidar_to_ego.double()
    current = current_ego_to_global.double() @ mounting
    other = other_ego_to_global.double() @ mounting
    return torch.linalg.solve(current, other)


def bev_augmentation_matrix(angle: float, scale: float, flip_x: bool, flip_y: bool) -> Tensor:
    """Rotation (counter-clockwise, radians), then scale, then the negation of x or y.

    Returns:
        (3, 3), float64.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    rotation = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=torch.float64)
    signs = torch.tensor([-1 if flip_x else 1, -1 if flip_y else 1, 1], dtype=torch.float64)
    return signs[:, None] * scale * rotation


def warp_bev(bev: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """Moves the content of BEV maps as a transform moves points.

    Args:
        bev: (B, C, H, W).
        matrix: (B, 3, 3), linear transforms of LiDAR coordinates; the grid must be centred on the
            LiDAR and as long as wide.
        shift: (B, 2), added to x and y afterwards, in units of half the grid's extent.

    Returns:
        (B, C, H, W), bilinear; zero where the content would come from outside of the grid.
    """
    # Without the check of torch.linalg.inv, which waits for the device.
    backward = torch.linalg.inv_ex(matrix.double()[:, :2, :2])[0]
    if shift is None:
        shift = matrix.new_zeros(len(matrix), 2)
    origin = -(backward * shift.double().unsqueeze(1)).sum(-1, keepdim=True)
    theta = torch.cat((backward, origin), dim=-1).to(bev.dtype)
    grid = F.affine_grid(theta, list(bev.shape), align_corners=False)
    return F.grid_sample(bev, grid, padding_mode="zeros", align_corners=False)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4), w first."""
    w, x, y, z = quaternion.unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), dim=-1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), dim=-1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), dim=-1),
    )
    return torch.stack(rows, dim=-2)


def box_corners(rotation: Tensor, center: Tensor, wlh: Tensor) -> Tensor:
    """The eight corners of boxes: the front face first, as the nuScenes devkit orders them.

    Args:
        rotation: (..., 3, 3); a box's length lies along its x, width along y, height along z.
        center: (..., 3), gravity centre.
        wlh: (..., 3), width, length and height.

    Returns:
        (..., 8, 3).
    """
    width, length, height = (wlh / 2).unbind(-1)
    x = torch.stack([length] * 4 + [-length] * 4, dim=-1)
    y = torch.stack([width, -width, -width, width] * 2, dim=-1)
    z = torch.stack([height, height, -height, -height] * 2, dim=-1)
    # [..., 3, 8]; summed by hand for the same reason as in project_points.
    local = torch.stack((x, y, z), dim=-2)
    rotated = (rotation.unsqueeze(-1) * local.unsqueeze(-3)).sum(-2)
    return rotated.transpose(-1, -2) + center.unsqueeze(-2)


def unproject(pixels: Tensor, inverse_intrinsics: Tensor) -> Tensor:
    """Rays of unit depth through pixels.

    Args:
        pixels: (..., 2), x and y.
        inverse_intrinsics: (..., 3, 3).

    Returns:
        (..., 3) in the camera frame, z = 1 for a camera without a fourth axis.
    """
    columns = inverse_intrinsics.unbind(-1)
    return columns[0] * pixels[..., :1] + columns[1] * pixels[..., 1:] + columns[2]


def allocentric_to_egocentric(rotation: Tensor, ray: Tensor) -> Tensor:
    """Turns rotations relative to the line of sight into rotations relative to the camera.

    Args:
        rotation: (..., 3, 3), as if the object were seen straight ahead.
        ray: (..., 3), where it is seen, in the camera frame.

    Returns:
        (..., 3, 3).
    """
    z = F.normalize(ray, dim=-1)
    down = torch.zeros_like(z)
    down[..., 1] = 1
    y = F.normalize(down - z[..., 1:2] * z, dim=-1)
    x = torch.linalg.cross(y, z)
    frame = torch.stack((x, y, z), dim=-1)
    return (frame.unsqueeze(-1) * rotation.unsqueeze(-3)).sum(-2)
