"""Visualization of 3D boxes in the cameras' images and on a bird's-eye view."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

__all__ = [
    "CameraView",
    "draw_bev",
    "draw_boxes",
    "draw_mosaic",
    "draw_sample",
    "views_of_sample",
]

# mmdet3d's corners: the bottom and top faces, and the front, where x is largest.
_EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
_NEAR = 0.1
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# BGR, distinct for the ten classes of nuScenes in alphabetical order; later classes repeat them.
_PALETTE = (
    *((150, 120, 100), (189, 103, 148), (20, 175, 190), (14, 127, 255), (75, 86, 140)),
    *((200, 180, 23), (210, 90, 30), (44, 160, 44), (128, 128, 0), (60, 60, 230)),
)
_TRUTH = (200, 0, 200)
_CELL_WIDTH, _GAP = 640, 4
# The order of the nuScenes devkit; other cameras keep their own.
_LAYOUT = (
    *("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    *("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)


@dataclass(frozen=True)
class CameraView:
    """An image of a camera and its projection.

    Attributes:
        name: Name of the camera.
        image: (H, W, 3), BGR.
        lidar_to_image: (4, 4), to homogeneous pixels.
    """

    name: str
    image: np.ndarray
    lidar_to_image: np.ndarray

    def resized(self, width: int) -> "CameraView":
        """The view at another width."""
        scale = width / self.image.shape[1]
        size = (width, round(self.image.shape[0] * scale))
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        return CameraView(self.name, image, np.diag([scale, scale, 1.0, 1.0]) @ self.lidar_to_image)


def views_of_sample(sample: dict, names: Sequence[str]) -> list[CameraView]:
    """The views of a packed sample's current frame, as the model gets them.

    Args:
        sample: A sample of :class:`BEVFormerV2NuScenesDataset`: ``inputs`` and ``data_samples``.
        names: Names of the cameras.
    """
    packed = sample["data_samples"]
    current = packed.frames.index(0)
    images = sample["inputs"]["img"].unflatten(0, (len(packed.frames), -1))[current]
    return [
        CameraView(name, image.permute(1, 2, 0).numpy(), matrix)
        for name, image, matrix in zip(names, images, packed.lidar2img[current], strict=True)
    ]


def draw_boxes(
    view: CameraView,
    boxes: LiDARInstance3DBoxes,
    labels: Sequence[int],
    *,
    captions: Sequence[str] | None = None,
    color: tuple[int, int, int] | None = None,
    thickness: int | None = None,
) -> np.ndarray:
    """Draws the edges of boxes, their captions and their velocities (one second) into an image.

    Args:
        view: The camera.
        boxes: In the LiDAR frame.
        labels: Class index of each box, which sets its color.
        captions: A short str per box.
        color: One color for all boxes, BGR.
        thickness: Line width in pixels; by default 1/400 of the image's width, at least 1.

    Returns:
        A new image. Edges are clipped at the camera's plane.
    """
    canvas = np.ascontiguousarray(view.image).copy()
    thickness = thickness or max(1, round(canvas.shape[1] / 400))
    corners, centers = boxes.corners.double().numpy(), boxes.gravity_center.double().numpy()
    bottoms, ahead = boxes.bottom_center.double().numpy(), _velocities(boxes)
    anchors: list[tuple[int, np.ndarray]] = []
    # The farthest first, so that near boxes are on top.
    for index in np.argsort(-np.linalg.norm(centers, axis=1), kind="stable"):
        line_color = color or _color(labels[index])
        points = _project(corners[index], view.lidar_to_image)
        for i, j in _EDGES:
            _line(canvas, points[i], points[j], line_color, thickness)
        # The diagonals of the front face, as in the devkit's "heading" marks.
        _line(canvas, points[4], points[6], line_color, max(1, thickness // 2))
        _line(canvas, points[5], points[7], line_color, max(1, thickness // 2))
        if np.linalg.norm(ahead[index]) > 0.5:
            start = bottoms[index]
            arrow = _project(
                np.stack((start, start + np.append(ahead[index], 0))), view.lidar_to_image
            )
            _line(canvas, *arrow, line_color, thickness, arrow=True)
        if captions is not None and (points[:, 2] > _NEAR).all():
            pixels = points[:, :2] / points[:, 2:]
            inside = (pixels > 0).all(1) & (pixels < canvas.shape[1::-1]).all(1)
            if inside.any():
                anchors.append((index, pixels.min(0)))
    taken: list[tuple[int, int, int, int]] = []
    for index, corner in reversed(anchors):
        _caption(canvas, captions[index], corner, color or _color(labels[index]), taken)
    return canvas


def draw_bev(
    objects: InstanceData | None = None,
    ground_truth: InstanceData | None = None,
    *,
    reach: float = 51.2,
    size: int = 800,
) -> np.ndarray:
    """Draws boxes from above: forward is up, the ego car in the middle, range rings in metres.

    Args:
        objects: ``bboxes_3d`` in the LiDAR frame and ``labels_3d``; the heading is a line from the
            centre to the front, the velocity an arrow to the position in one second.
        ground_truth: The same, drawn in magenta.
        reach: Metres from the middle to the border.
        size: Side of the image in pixels.

    Returns:
        (size, size, 3), BGR.
    """
    canvas = np.full((size, size, 3), 255, np.uint8)
    scale = size / 2 / reach
    thickness = max(1, round(size / 400))

    def pixel(xy: np.ndarray) -> tuple[int, int]:
        return int(size / 2 + xy[0] * scale), int(size / 2 - xy[1] * scale)

    step = 10 if reach <= 60 else 20
    for radius in range(step, int(reach) + 1, step):
        cv2.circle(canvas, pixel(np.zeros(2)), int(radius * scale), (225, 225, 225), 1, cv2.LINE_AA)
        cv2.putText(
            canvas,
            f"{radius} m",
            (pixel(np.zeros(2))[0] + 3, pixel(np.array([0, radius]))[1] - 3),
            _FONT,
            size / 2000,
            (150, 150, 150),
            1,
            cv2.LINE_AA,
        )
    for instances, color in ((ground_truth, _TRUTH), (objects, None)):
        if instances is None:
            continue
        boxes, labels = instances.bboxes_3d, _to_list(instances.labels_3d)
        # Bottom corners in order around the box.
        outlines = boxes.corners[:, [0, 3, 7, 4], :2].double().numpy()
        centers, ahead = boxes.gravity_center[:, :2].double().numpy(), _velocities(boxes)
        for outline, center, way, label in zip(outlines, centers, ahead, labels, strict=True):
            line_color = color or _color(label)
            polygon = np.array([pixel(corner) for corner in outline])
            cv2.polylines(canvas, [polygon], True, line_color, thickness, cv2.LINE_AA)
            front = outline[2:].mean(0)
            cv2.line(canvas, pixel(center), pixel(front), line_color, thickness, cv2.LINE_AA)
            if np.linalg.norm(way) > 0.5:
                end = pixel(center + way)
                cv2.arrowedLine(
                    canvas, pixel(center), end, line_color, thickness, cv2.LINE_AA, tipLength=0.2
                )
    _ego(canvas, pixel)
    return canvas


def draw_mosaic(
    views: Sequence[CameraView],
    objects: InstanceData | None = None,
    ground_truth: InstanceData | None = None,
    *,
    class_names: Sequence[str],
    reach: float = 51.2,
    title: str = "",
) -> np.ndarray:
    """Draws boxes into all cameras and onto a bird's-eye view, with a legend.

    The size depends on the number of cameras and their aspect ratio alone: each is 640 pixels wide.

    Args:
        views: The cameras.
        objects: Predictions: ``bboxes_3d`` in the LiDAR frame, ``labels_3d`` and ``scores_3d``.
        ground_truth: ``bboxes_3d`` and ``labels_3d``, drawn in magenta.
        class_names: Names of the classes.
        reach: Metres from the middle of the bird's-eye view to its border.
        title: A line above the legend, such as the sample's token.

    Returns:
        (H, W, 3), BGR.
    """
    by_name = {view.name: view for view in views}
    if set(by_name) == set(_LAYOUT):
        views = [by_name[name] for name in _LAYOUT]
    cells = [_cell(view, objects, ground_truth, class_names) for view in views]
    height = max(cell.shape[0] for cell in cells)
    blank = np.full((height, _CELL_WIDTH, 3), 32, np.uint8)
    rows = []
    for first in range(0, len(cells), 3):
        row = []
        for cell in cells[first : first + 3]:
            row.append(blank.copy())
            row[-1][: cell.shape[0]] = cell
        row += [blank] * (3 - len(row))
        rows.append(np.hstack([np.pad(cell, ((0, _GAP), (0, _GAP), (0, 0))) for cell in row]))
    cameras = np.vstack(rows)
    side = max(cameras.shape[0], _CELL_WIDTH)
    legend = _legend(cameras.shape[1] + side, class_names, ground_truth is not None, title)
    cameras = np.pad(cameras, ((0, side - cameras.shape[0]), (0, 0), (0, 0)))
    above = draw_bev(objects, ground_truth, reach=reach, size=side)
    return np.vstack((np.hstack((cameras, above)), legend))


def draw_sample(
    sample: dict,
    objects: InstanceData | None = None,
    ground_truth: InstanceData | None = None,
    *,
    camera_names: Sequence[str],
    class_names: Sequence[str],
    reach: float = 51.2,
) -> np.ndarray:
    """:func:`draw_mosaic` of a packed sample's current frame, as the model gets it."""
    return draw_mosaic(
        views_of_sample(sample, camera_names),
        objects,
        ground_truth,
        class_names=class_names,
        reach=reach,
        title=sample["data_samples"].get("token", ""),
    )


def _cell(
    view: CameraView,
    objects: InstanceData | None,
    ground_truth: InstanceData | None,
    class_names: Sequence[str],
) -> np.ndarray:
    """One camera with its boxes and name."""
    view = view.resized(_CELL_WIDTH)
    if ground_truth is not None:
        labels = _to_list(ground_truth.labels_3d)
        image = draw_boxes(view, ground_truth.bboxes_3d, labels, color=_TRUTH, thickness=1)
        view = CameraView(view.name, image, view.lidar_to_image)
    if objects is not None:
        labels = _to_list(objects.labels_3d)
        captions = [class_names[label] for label in labels]
        if "scores_3d" in objects:
            scores = _to_list(objects.scores_3d)
            captions = [f"{name} {s:.2f}" for name, s in zip(captions, scores, strict=True)]
        image = draw_boxes(view, objects.bboxes_3d, labels, captions=captions)
        view = CameraView(view.name, image, view.lidar_to_image)
    canvas = np.ascontiguousarray(view.image).copy()
    (width, height), below = cv2.getTextSize(view.name, _FONT, 0.6, 1)
    cv2.rectangle(canvas, (0, 0), (width + 16, height + below + 12), (0, 0, 0), -1)
    cv2.putText(canvas, view.name, (8, height + 8), _FONT, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def _legend(width: int, class_names: Sequence[str], truth: bool, title: str) -> np.ndarray:
    entries = [(name, _color(index)) for index, name in enumerate(class_names)]
    entries += [("ground truth", _TRUTH)] if truth else []
    lines, x, y = [], 10, 20
    for name, color in entries:
        length = cv2.getTextSize(name, _FONT, 0.5, 1)[0][0] + 40
        if x + length > width:
            x, y = 10, y + 24
        lines.append((name, color, x, y))
        x += length
    titled = 24 if title else 0
    canvas = np.full((y + 12 + titled, width, 3), 255, np.uint8)
    for name, color, x, y in lines:
        cv2.rectangle(canvas, (x, y - 10), (x + 14, y + 2), color, -1)
        cv2.putText(canvas, name, (x + 20, y), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    if title:
        bottom = canvas.shape[0] - 10
        cv2.putText(canvas, title, (10, bottom), _FONT, 0.5, (110, 110, 110), 1, cv2.LINE_AA)
    return canvas


def _ego(canvas: np.ndarray, pixel: Callable[[np.ndarray], tuple[int, int]]) -> None:
    """The ego car, 4.1 x 1.7 m as nuScenes' Renault Zoe, its LiDAR in the middle."""
    outline = np.array([pixel(np.array(p)) for p in ((-0.9, -2), (0.9, -2), (0.9, 2), (-0.9, 2))])
    cv2.fillPoly(canvas, [outline], (90, 90, 90), cv2.LINE_AA)
    tip = np.array([pixel(np.array(p)) for p in ((-0.9, 0.6), (0.9, 0.6), (0, 2))])
    cv2.fillPoly(canvas, [tip], (230, 230, 230), cv2.LINE_AA)


def _caption(
    canvas: np.ndarray,
    caption: str,
    corner: np.ndarray,
    color: tuple[int, int, int],
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Writes above a box, unless the caption of a nearer one is there already."""
    scale = max(0.35, canvas.shape[1] / 1700)
    (width, height), _ = cv2.getTextSize(caption, _FONT, scale, 1)
    left = int(np.clip(corner[0], 0, canvas.shape[1] - width - 2))
    bottom = int(np.clip(corner[1] - 3, height + 2, canvas.shape[0] - 2))
    right, top = left + width + 2, bottom - height - 2
    if any(left < x1 and x0 < right and top < y1 and y0 < bottom for x0, y0, x1, y1 in taken):
        return
    taken.append((left, top, right, bottom))
    cv2.rectangle(canvas, (left, top), (right, bottom + 2), color, -1)
    at = (left + 1, bottom)
    cv2.putText(canvas, caption, at, _FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)


def _project(points: np.ndarray, lidar_to_image: np.ndarray) -> np.ndarray:
    """(n, 3) to pixels times depth, and depth."""
    homogeneous = np.concatenate((points, np.ones_like(points[:, :1])), axis=1)
    return homogeneous @ lidar_to_image[:3].T


def _line(
    canvas: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    color: tuple,
    thickness: int,
    *,
    arrow: bool = False,
) -> None:
    """A line between projected points; the part behind the camera is cut off."""
    visible = _in_front(one, other)
    if visible is None:
        return
    start, end = (tuple(np.clip(p[:2] / p[2], -1e4, 1e4).astype(int).tolist()) for p in visible)
    if arrow:
        cv2.arrowedLine(canvas, start, end, color, thickness, cv2.LINE_AA, tipLength=0.15)
    else:
        cv2.line(canvas, start, end, color, thickness, cv2.LINE_AA)


def _in_front(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of an edge in front of the camera; ``None`` if there is none."""
    if max(one[2], other[2]) <= _NEAR:
        return None

    def cut(point: np.ndarray, towards: np.ndarray) -> np.ndarray:
        if point[2] >= _NEAR:
            return point
        return towards + (towards[2] - _NEAR) / (towards[2] - point[2]) * (point - towards)

    return cut(one, other), cut(other, one)


def _velocities(boxes: LiDARInstance3DBoxes) -> np.ndarray:
    """(n, 2) metres per second, 0 where unknown."""
    values = boxes.tensor[:, 7:9].double().numpy()
    return np.nan_to_num(values) if values.shape[1] == 2 else np.zeros((len(boxes), 2))


def _to_list(values: Tensor | np.ndarray | Sequence) -> list:
    return np.asarray(values).tolist()


def _color(label: int) -> tuple[int, int, int]:
    return _PALETTE[label % len(_PALETTE)]
