"""The objects of single images, as the perspective head learns them."""

from collections.abc import Callable

import numpy as np
import torch
from pyquaternion import Quaternion

from dcnv4_mm.bev.geometry import box_corners
from dcnv4_mm.bev.task_modules.camera_boxes import NO_ATTRIBUTE

__all__ = ["ATTRIBUTE_IDS", "clipped_box", "from_cam_instances"]

ATTRIBUTE_IDS = {
    "vehicle.moving": 0,
    "vehicle.parked": 1,
    "vehicle.stopped": 2,
    "pedestrian.moving": 0,
    "pedestrian.standing": 1,
    "pedestrian.sitting_lying_down": 2,
    "cycle.with_rider": 0,
    "cycle.without_rider": 1,
}
# What mmdet3d's infos call `attr_label`.
_INFO_ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
    "None",
)
_MIN_POINTS = 3
_MIN_VISIBLE = 0.2
# Metres: a corner this near makes a box too close to be projected; one corner must be farther.
_MIN_CORNER_DEPTH, _MIN_VISIBLE_DEPTH = 0.1, 1.0
_MATCH_DISTANCE = 1e-2


def clipped_box(
    corners: np.ndarray, intrinsics: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray | None:
    """The 2D box around a 3D one, cut at the image's border.

    Args:
        corners: (8, 3) in the camera frame.
        intrinsics: (3, 3).
        image_size: (H, W).

    Returns:
        x1, y1, x2, y2; ``None`` if the object is not in the image, too near, or mostly outside.
    """
    depth = corners[:, 2]
    if depth.min() <= _MIN_CORNER_DEPTH:
        return None
    pixels = corners @ intrinsics.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    limit = np.array([image_size[1], image_size[0]], dtype=np.float64)
    inside = ((pixels > 0) & (pixels < limit)).all(1) & (depth > _MIN_VISIBLE_DEPTH)
    if not inside.any():
        return None
    full = np.concatenate((pixels.min(0), pixels.max(0)))
    clipped = np.clip(full, 0, np.tile(limit, 2))
    visible = np.prod(clipped[2:] - clipped[:2]) / np.prod(full[2:] - full[:2])
    return clipped if visible >= _MIN_VISIBLE else None


def from_cam_instances(info: dict, camera: str, image_size: tuple[int, int]) -> list[dict]:
    """Makes ``mono_instances`` of what mmdet3d's infos hold, for infos that were not extended.

    Args:
        info: An info of one sample.
        camera: Name of the camera.
        image_size: (H, W) of its image.

    Returns:
        As :func:`dcnv4_mm.bev.data.infos.mono_instances`, without ``token``.

    Note:
        The infos keep one angle of three, so boxes are up to a degree off.
    """
    intrinsics = np.asarray(info["images"][camera]["cam2img"])[:3, :3]
    points = _point_counts(info, camera)
    found = []
    for entry in info["cam_instances"][camera]:
        box = np.asarray(entry["bbox_3d"], dtype=np.float64)
        if entry["bbox_label_3d"] < 0 or points(box[:3]) < _MIN_POINTS:
            continue
        turn = Quaternion(axis=[1, 0, 0], angle=np.pi / 2) * Quaternion(
            axis=[0, 0, 1], angle=-box[6]
        )
        wlh = box[[5, 3, 4]]
        parts = (torch.from_numpy(part) for part in (turn.rotation_matrix, box[:3], wlh))
        clipped = clipped_box(box_corners(*parts).numpy(), intrinsics, image_size)
        if clipped is None:
            continue
        attribute = _INFO_ATTRIBUTES[entry["attr_label"]]
        found.append(
            dict(
                bbox=clipped.tolist(),
                bbox_label=entry["bbox_label_3d"],
                quat=turn.elements.tolist(),
                center=box[:3].tolist(),
                wlh=wlh.tolist(),
                attr=ATTRIBUTE_IDS.get(attribute, NO_ATTRIBUTE),
                speed=float(np.linalg.norm(entry["velocity"])),
            )
        )
    return found


def _point_counts(info: dict, camera: str) -> Callable[[np.ndarray], int]:
    """A function from a centre in the camera frame to the points in its box."""
    instances = info["instances"]
    if not instances:
        return lambda center: 0
    matrix = np.asarray(info["images"][camera]["lidar2cam"])
    centers = np.array([instance["bbox_3d"][:3] for instance in instances])
    centers = centers @ matrix[:3, :3].T + matrix[:3, 3]
    counts = [instance["num_lidar_pts"] + instance["num_radar_pts"] for instance in instances]

    def count(center: np.ndarray) -> int:
        distances = np.linalg.norm(centers - center, axis=1)
        nearest = int(distances.argmin())
        return int(counts[nearest]) if distances[nearest] < _MATCH_DISTANCE else 0

    return count
