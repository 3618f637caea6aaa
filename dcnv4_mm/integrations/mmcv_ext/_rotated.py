"""Overlaps and NMS of rotated boxes, of ``mmcv._ext``, in float64 on torch alone.

Boxes (N, 5) are center x, y, width, height and angle in radians. Where edges of two boxes lie on
one line, mmcv 2.1.0 loses corners of the shared polygon to rounding; here the overlap is right.
"""

import torch
from torch import Tensor

__all__ = ["box_iou_rotated", "nms_rotated"]

# Pairs of boxes per chunk, of about 2 kB each, and elements of a chunk of distances.
_PAIRS_AT_ONCE = 1 << 16
_DISTANCES_AT_ONCE = 1 << 22


def box_iou_rotated(
    boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Overlap of every box with every other, row by row in ``ious``, or of pairs if ``aligned``.

    ``mode_flag`` is 0 for intersection over union, 1 for intersection over the first box.
    """
    if not aligned:
        rows, columns = len(boxes1), len(boxes2)
        boxes1 = boxes1.repeat_interleave(columns, dim=0)
        boxes2 = boxes2.repeat(rows, 1)
    ious.copy_(_overlaps(boxes1, boxes2, mode_flag))


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """NMS of rotated boxes; returns the kept indices by descending score.

    ``order`` sorts the boxes by score, ``dets_sorted`` are the sorted ones, with the label as
    sixth number if ``multi_label``: then boxes of different labels do not suppress each other.
    mmcv's CPU operator, other than its CUDA one, overlooks the labels.
    """
    first, second = _near_pairs(dets_sorted, multi_label)
    iou = _overlaps(dets_sorted[first, :5], dets_sorted[second, :5], 0)
    above = iou.float() > iou_threshold
    first, counts = torch.unique_consecutive(first[above].cpu(), return_counts=True)
    groups = second[above].cpu().split(counts.tolist())
    keep = torch.ones(len(order), dtype=torch.bool)
    for box, suppressed in zip(first.tolist(), groups, strict=True):
        if keep[box]:
            keep[suppressed] = False
    return order[keep.to(order.device)]


def _near_pairs(boxes: Tensor, multi_label: bool) -> tuple[Tensor, Tensor]:
    """Indices i < j, sorted by i, of the pairs whose circumscribed circles meet."""
    centers, radii = boxes[:, :2].double(), boxes[:, 2:4].double().norm(dim=1) / 2
    columns = torch.arange(len(boxes), device=boxes.device)
    pairs = []
    for rows in columns.split(max(1, _DISTANCES_AT_ONCE // len(boxes))):
        distances = (centers[rows, None] - centers).norm(dim=2)
        near = (distances <= radii[rows, None] + radii) & (rows[:, None] < columns)
        if multi_label:
            near &= boxes[rows, None, 5] == boxes[:, 5]
        row, column = near.nonzero(as_tuple=True)
        pairs.append(torch.stack((rows[row], column)))
    first, second = torch.cat(pairs, dim=1)
    return first, second


def _overlaps(boxes1: Tensor, boxes2: Tensor, mode_flag: int) -> Tensor:
    """Overlaps (P,) of pairs of boxes (P, 5)."""
    chunks = zip(boxes1.split(_PAIRS_AT_ONCE), boxes2.split(_PAIRS_AT_ONCE), strict=True)
    overlaps = []
    for first, second in chunks:
        first, second = first.double(), second.double()
        areas = first[:, 2:4].prod(dim=1), second[:, 2:4].prod(dim=1)
        intersection = _intersections(first, second)
        base = areas[0] if mode_flag else areas[0] + areas[1] - intersection
        # As in mmcv, boxes without an area overlap nothing.
        empty = (areas[0] < 1e-14) | (areas[1] < 1e-14)
        overlaps.append((intersection / base).masked_fill(empty, 0.0))
    return torch.cat(overlaps)


def _intersections(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection areas (P,) of pairs of boxes.

    The corners of the shared polygon are corners of one box inside the other, and crossings of
    edges. Some come twice, which adds nothing to the area.
    """
    middle = (boxes1[:, :2] + boxes2[:, :2]) / 2
    centers1, centers2 = boxes1[:, :2] - middle, boxes2[:, :2] - middle
    corners1, corners2 = _corners(centers1, boxes1), _corners(centers2, boxes2)
    crossings, crossed = _crossings(corners1, corners2)
    points = torch.cat((corners1, corners2, crossings), dim=1)
    inside = _inside(corners1, centers2, boxes2), _inside(corners2, centers1, boxes1)
    valid = torch.cat((*inside, crossed), dim=1)

    # The polygon is convex: its corners in the order of their angles around a point inside.
    count = valid.sum(dim=1, keepdim=True).clamp(min=1)
    points = points - (points * valid.unsqueeze(2)).sum(dim=1, keepdim=True) / count.unsqueeze(2)
    angles = torch.atan2(points[..., 1], points[..., 0]).masked_fill(~valid, torch.inf)
    order = angles.argsort(dim=1)
    # Points that are no corner come last, and are replaced by the first corner.
    order = torch.where(valid.gather(1, order), order, order[:, :1])
    points = points.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
    area = _cross(points, points.roll(-1, dims=1)).sum(dim=1).abs() / 2
    return torch.where(valid.any(dim=1), area, 0.0)


def _corners(centers: Tensor, boxes: Tensor) -> Tensor:
    """Corners (P, 4, 2), one after the other around the box."""
    cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
    along = torch.stack((cos, sin), dim=1) * boxes[:, 2:3] / 2
    across = torch.stack((-sin, cos), dim=1) * boxes[:, 3:4] / 2
    offsets = (-along - across, along - across, along + across, across - along)
    return centers.unsqueeze(1) + torch.stack(offsets, dim=1)


def _inside(points: Tensor, centers: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (P, 4, 2) lie in a box, or on its border."""
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    x, y = (points - centers.unsqueeze(1)).unbind(2)
    # Rounding must not move a common corner out of either box.
    half = boxes[:, 2:4].abs() / 2 + 1e-9 * boxes[:, 2:4].abs().sum(dim=1, keepdim=True)
    return ((x * cos + y * sin).abs() <= half[:, :1]) & ((y * cos - x * sin).abs() <= half[:, 1:])


def _crossings(corners1: Tensor, corners2: Tensor) -> tuple[Tensor, Tensor]:
    """Points (P, 16, 2) where the edges' lines meet, and which of them lie on both edges."""
    edges1 = (corners1.roll(-1, dims=1) - corners1).unsqueeze(2)
    edges2 = (corners2.roll(-1, dims=1) - corners2).unsqueeze(1)
    between = corners2.unsqueeze(1) - corners1.unsqueeze(2)
    determinant = _cross(edges1, edges2)
    # Parallel edges divide by zero: no comparison with the result is true.
    position1 = _cross(between, edges2) / determinant
    position2 = _cross(between, edges1) / determinant
    crossed = (position1 >= 0) & (position1 <= 1) & (position2 >= 0) & (position2 <= 1)
    position1 = position1.masked_fill(~crossed, 0.0).unsqueeze(3)
    points = corners1.unsqueeze(2) + position1 * edges1
    return points.flatten(1, 2), crossed.flatten(1, 2)


def _cross(first: Tensor, second: Tensor) -> Tensor:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
