"""Non-maximum suppression, in an image and among the cameras around the car."""

from collections.abc import Sequence

import torch
from mmcv.ops import batched_nms
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

__all__ = ["class_wise_nms", "merge_cameras"]


def class_wise_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one of their class overlaps, the best first.

    Args:
        boxes: (n, 4) as x1, y1, x2, y2, or (n, 5) as center x, y, width, height, angle in radians.
        scores: (n,).
        labels: (n,).
        iou_threshold: The largest overlap.

    Returns:
        (kept,).
    """
    if len(boxes) == 0:
        return labels
    rotated = boxes.shape[1] == 5
    positions = boxes.clone()
    # mmcv moves the classes apart by the largest coordinate, so none may be negative.
    positions[:, : 2 if rotated else 4] -= boxes[:, :2].min()
    cfg = dict(type="nms_rotated" if rotated else "nms", iou_threshold=iou_threshold)
    return batched_nms(positions, scores, labels, cfg)[1]


def merge_cameras(
    imgs: Sequence[InstanceData],
    lidar_to_camera: Tensor,
    *,
    iou_threshold: float = 0.3,
    max_num: int = 500,
) -> InstanceData:
    """Moves the boxes of all cameras into the LiDAR frame and drops what is seen twice.

    Args:
        images: Output of :meth:`DD3DHead.predict_by_feat`, one entry per camera.
        lidar_to_camera: (num_cameras, 4, 4), without augmentation.
        iou_threshold: Two boxes of a class that overlap more, seen from above, are one.
        max_num: Maximum number of boxes to keep.

    Returns:
        ``bboxes_3d``, ``scores_3d`` and ``labels_3d``, the best first; the velocity is 0.
    """
    boxes = []
    for img, matrix in zip(imgs, lidar_to_camera.float(), strict=True):
        camera_to_lidar = torch.linalg.inv(matrix)
        rotation = camera_to_lidar[:3, :3]
        # Summed by hand: a matmul may be rounded to TF32 or less.
        centers = (rotation * img.centers[:, None]).sum(-1) + camera_to_lidar[:3, 3]
        # A box's length lies along its own x axis.
        forward = (rotation * img.rotations[:, None, :, 0]).sum(-1)
        yaw = torch.atan2(forward[:, 1], forward[:, 0])[:, None]
        still = centers.new_zeros(len(centers), 2)
        boxes.append(torch.cat((centers, img.wlh[:, [1, 0, 2]], yaw, still), dim=-1))
    joined = torch.cat(boxes)
    scores = torch.cat([img.scores for img in imgs])
    labels = torch.cat([img.labels for img in imgs])
    kept = class_wise_nms(joined[:, [0, 1, 3, 4, 6]], scores, labels, iou_threshold)[:max_num]
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(joined[kept], box_dim=9, origin=(0.5, 0.5, 0.5)),
        scores_3d=scores[kept],
        labels_3d=labels[kept],
    )
