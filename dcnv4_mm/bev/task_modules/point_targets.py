"""Which object each location of a pyramid answers for (FCOS)."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["assign_points", "pyramid_points"]

_CENTER_RADIUS = 1.5


def pyramid_points(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | None = None
) -> Tensor:
    """Pixels (x, y) that the cells of all levels stand for, without half a stride, (M, 2)."""
    points = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=device, dtype=torch.float32) * stride,
            torch.arange(width, device=device, dtype=torch.float32) * stride,
            indexing="ij",
        )
        points.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    return torch.cat(points)


def assign_points(
    points: Tensor, strides: Tensor, sizes: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Finds the smallest box that claims each location.

    A box claims a location near its centre, on the level that is meant for boxes that large.

    Args:
        points: (M, 2).
        strides: Stride of each location, (M,).
        sizes: Minimum and maximum reach of a box from each location, (M, 2) pixels.
        boxes: x1, y1, x2, y2 in pixels, (n, 4).

    Returns:
        The box's index or -1, (M,), and the distances to its left, top, right and bottom side,
        (M, 4).
    """
    if len(boxes) == 0:
        return points.new_full((len(points),), -1, dtype=torch.int64), points.new_zeros(
            len(points), 4
        )
    lower, upper = boxes[:, :2], boxes[:, 2:]
    at = points[:, None]
    # [M, n, 4]
    ltrb = torch.cat((at - lower, upper - at), dim=-1)
    center = (lower + upper) / 2
    reach = _CENTER_RADIUS * strides[:, None, None]
    inside = torch.cat(
        (
            at - torch.maximum(center - reach, lower),
            torch.minimum(center + reach, upper) - at,
        ),
        dim=-1,
    )
    largest = ltrb.amax(-1)
    claimed = (
        (inside.amin(-1) > 0) & (largest >= sizes[:, None, 0]) & (largest <= sizes[:, None, 1])
    )
    area = (upper - lower).prod(-1).expand(len(points), -1)
    smallest, index = area.masked_fill(~claimed, torch.inf).min(1)
    chosen = ltrb[torch.arange(len(points), device=points.device), index]
    return torch.where(smallest.isfinite(), index, -1), chosen
