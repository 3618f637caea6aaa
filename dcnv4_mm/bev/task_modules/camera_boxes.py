"""Boxes in the camera frame, and the objects of several images as one list of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from dcnv4_mm.bev.geometry import box_corners, quaternion_to_matrix, unproject

__all__ = ["NO_ATTRIBUTE", "CameraBoxes", "join_objects"]

# The label of an object without an attribute; the others are 0 to 2.
NO_ATTRIBUTE = 3


@dataclass(frozen=True)
class CameraBoxes:
    """Boxes in the camera frame, by the parts that the disentangled loss takes turns with.

    Attributes:
        quat: The rotations, (P, 3, 3).
        proj_ctr: Where the gravity centres are in the image, (P, 2) pixels.
        depth: (P, 1) metres.
        size: Width, length and height, (P, 3) metres.
    """

    quat: Tensor
    proj_ctr: Tensor
    depth: Tensor
    size: Tensor

    def corners(self, inverse_intrinsics: Tensor, **replaced: Tensor) -> Tensor:
        """Corners (P, 8, 3), with some of the parts replaced by others."""
        parts = {**vars(self), **replaced}
        center = unproject(parts["proj_ctr"], inverse_intrinsics) * parts["depth"]
        return box_corners(parts["quat"], center, parts["size"])


def join_objects(gt_instances: Sequence[InstanceData]) -> dict[str, Tensor]:
    """The objects of all images in one list, with what the targets need of them."""
    joined: dict[str, list[Tensor]] = {}
    for instances in gt_instances:
        centers = instances.centers.float()
        intrinsics = torch.as_tensor(
            instances.intrinsics, dtype=torch.float32, device=centers.device
        )
        depth = centers[:, 2:]
        # Summed by hand: a matmul may be rounded to TF32.
        pixels = (intrinsics * centers[:, None]).sum(-1)
        parts = {
            "labels": instances.labels,
            "attributes": instances.attributes,
            "speeds": instances.speeds.float(),
            "rotation": quaternion_to_matrix(F.normalize(instances.quaternions.float(), dim=-1)),
            "proj_ctr": pixels[:, :2] / pixels[:, 2:],
            "depth": depth,
            "wlh": instances.wlh.float(),
            "inverse_intrinsics": torch.linalg.inv_ex(intrinsics)[0].expand(len(centers), -1, -1),
        }
        for name, part in parts.items():
            joined.setdefault(name, []).append(part)
    return {name: torch.cat(parts) for name, parts in joined.items()}
