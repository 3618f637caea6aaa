"""The matrices of a batch of samples, on its device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["SampleGeometry"]


@dataclass(frozen=True)
class SampleGeometry:
    """The matrices of a batch on its device, copied there at once and without waiting.

    Attributes:
        valid: Which frames exist, (B, T).
        lidar_to_image: From the current LiDAR frame to pixels, (B, T, N, 4, 4).
        own_lidar_to_image: From each frame's own LiDAR frame to pixels, (B, T, N, 4, 4).
        lidar_to_current: From the LiDAR frame of each frame to the current one, (B, T, 4, 4).
        intrinsics: Intrinsics of the current frame's cameras, (batch, num_cameras, 3, 3).
        bev_augmentation: The transform applied to the objects, (B, 3, 3), or ``None``.
        is_current: Which of the frames is the current one, T bools on the CPU.
    """

    valid: Tensor
    lidar_to_image: Tensor
    own_lidar_to_image: Tensor
    lidar_to_current: Tensor
    intrinsics: Tensor
    bev_augmentation: Tensor | None
    is_current: tuple[bool, ...]

    @classmethod
    def of(cls, metas: Sequence[dict], device: torch.device) -> "SampleGeometry":
        """Reads the metainfo of samples."""
        augmented = metas[0].get("bev_augmentation") is not None
        valid = np.stack([np.asarray(meta["frame_valid"], np.float32) for meta in metas])
        projections, motions, intrinsics = (
            np.stack([meta[key] for meta in metas])
            for key in ("lidar2img", "lidar_to_current", "cam2img")
        )
        # Multiplied in float64: the same for every sample that contains the frame.
        arrays = [valid, projections, projections @ motions[:, :, None], motions, intrinsics]
        if augmented:
            arrays.append(np.stack([meta["bev_augmentation"] for meta in metas]))
        packed = torch.from_numpy(np.concatenate([x.astype(np.float32).ravel() for x in arrays]))
        if device.type == "cuda":
            packed = packed.pin_memory().to(device, non_blocking=True)
        parts = packed.split([array.size for array in arrays])
        exists, *matrices = (x.view(a.shape) for x, a in zip(parts, arrays, strict=True))
        return cls(
            exists > 0,
            *matrices[:4],
            matrices[4] if augmented else None,
            tuple(offset == 0 for offset in metas[0]["frames"]),
        )
