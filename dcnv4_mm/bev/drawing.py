"""Draws boxes into the cameras' images and onto a map."""

from collections.abc import Sequence

import cv2
import numpy as np
from mmdet3d.structures import LiDARInstance3DBoxes

__all__ = ["draw_bev", "draw_boxes", "draw_sample"]

# mmdet3d's corners: the bottom and top faces, and the front, where x is largest.
_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
_NEAR = 0.1
_PALETTE = np.random.default_rng(3).integers(64, 256, (32, 3)).tolist()


def draw_boxes(
    image: np.ndarray,
    boxes: LiDARInstance3DBoxes,
    labels: Sequence[int],
    lidar_to_image: np.ndarray,
) -> np.ndarray:
    """Draws the edges of boxes into a image.

    Args:
        image: (H, W, 3), BGR.
        boxes: In the LiDAR frame.
        labels: One per box, for its colour.
        lidar_to_image: (4, 4).

    Returns:
        A new image. Edges are cut at the camera's plane.
    """
    canvas = np.ascontiguousarray(image).copy()
    corners = boxes.corners.double().numpy()
    homogeneous = np.concatenate((corners, np.ones_like(corners[..., :1])), axis=-1)
    # [n, 8, 3]: pixels times depth, and depth
    projected = homogeneous @ lidar_to_image[:3].T
    for points, label in zip(projected, labels, strict=True):
        for i, j in _EDGES:
            edge = _in_front(points[i], points[j])
            if edge is not None:
                start, end = (tuple(np.clip(p[:2] / p[2], -1e4, 1e4).astype(int)) for p in edge)
                cv2.line(canvas, start, end, _PALETTE[label], 2, cv2.LINE_AA)
    return canvas


def _in_front(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of an edge in front of the camera; ``None`` if there is none."""
    if one[2] < other[2]:
        one, other = other, one
    if one[2] <= _NEAR:
        return None
    if other[2] < _NEAR:
        share = (one[2] - _NEAR) / (one[2] - other[2])
        other = one + share * (other - one)
    return one, other


def draw_bev(
    boxes: LiDARInstance3DBoxes,
    labels: Sequence[int],
    *,
    reach: float = 51.2,
    size: int = 800,
) -> np.ndarray:
    """Draws boxes from above: forward is up, the car in the middle, a line from centre to front.

    Args:
        boxes: In the LiDAR frame.
        labels: One per box, for its colour.
        reach: Metres from the middle to the border.
        size: Side of the image in pixels.

    Returns:
        (size, size, 3), BGR.
    """
    canvas = np.full((size, size, 3), 255, np.uint8)

    def pixel(xy: np.ndarray) -> tuple[int, int]:
        x, y = xy * (size / 2 / reach)
        return int(size / 2 + x), int(size / 2 - y)

    for radius in range(10, int(reach) + 1, 10):
        cv2.circle(canvas, pixel(np.zeros(2)), int(radius * size / 2 / reach), (225, 225, 225), 1)
    for box, label in zip(boxes.tensor.numpy(), labels, strict=True):
        center, length, width, yaw = box[:2], box[3], box[4], box[6]
        forward = np.array([np.cos(yaw), np.sin(yaw)])
        left = np.array([-forward[1], forward[0]])
        corners = [
            center + a * forward * length / 2 + b * left * width / 2
            for a, b in ((1, 1), (1, -1), (-1, -1), (-1, 1))
        ]
        outline = np.array([pixel(corner) for corner in corners])
        cv2.polylines(canvas, [outline], True, _PALETTE[label], 2, cv2.LINE_AA)
        front = pixel(center + forward * length / 2)
        cv2.line(canvas, pixel(center), front, _PALETTE[label], 2, cv2.LINE_AA)
    cv2.circle(canvas, pixel(np.zeros(2)), 4, (0, 0, 0), -1)
    return canvas


def draw_sample(sample: dict, boxes: LiDARInstance3DBoxes, labels: Sequence[int]) -> np.ndarray:
    """Draws boxes into the six images of a sample's present frame, and beside them from above.

    Args:
        sample: Of :class:`dcnv4_mm.bev.data.dataset.BEVFormerV2NuScenesDataset`, whole: with
            ``inputs`` and ``data_samples``.
        boxes: In the LiDAR frame.
        labels: One per box, for its colour.

    Returns:
        (2 H, 3 W + 2 H, 3), BGR, for images of (H, W).
    """
    packed = sample["data_samples"]
    current = packed.frames.index(0)
    cameras = sample["inputs"]["img"].unflatten(0, (len(packed.frames), -1))[current]
    imgs = [
        draw_boxes(image.permute(1, 2, 0).numpy(), boxes, labels, matrix)
        for image, matrix in zip(cameras, packed.lidar2img[current], strict=True)
    ]
    # In the order in which one looks around: left, middle, right.
    rows = [np.hstack([imgs[i] for i in row]) for row in ((2, 0, 1), (5, 3, 4))]
    around = np.vstack(rows)
    return np.hstack((around, draw_bev(boxes, labels, size=around.shape[0])))
