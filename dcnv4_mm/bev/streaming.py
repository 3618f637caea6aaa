"""Detection in a stream of images of own cameras."""

from dcnv4_mm._missing import naming_extra

with naming_extra("dcnv4_mm.bev", "mmdet3d"):
    # First: it serves the operators of mmcv that mmdet3d imports.
    import dcnv4_mm.registry  # noqa: F401

    # isort: split
    import mmdet3d  # noqa: F401

# isort: split
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from dcnv4_mm.bev.feature_cache import useful_capacity
from dcnv4_mm.bev.geometry import ego_motion
from dcnv4_mm.checkpoints import load_released
from dcnv4_mm.registry import MODELS

__all__ = ["StreamingDetector"]


class StreamingDetector:
    """Runs a trained BEVFormerV2 on one frame of images after the other.

    Each frame goes through backbone and neck once; the feature maps of earlier ones are kept.
    Future frames of the config are treated as missing, as at the end of a scene.

    Args:
        config: A config, or the path of one.
        weights: A checkpoint file, which must fit completely; ``None`` for random weights.
        device: Such as ``"cuda:1"``; ``None`` for a GPU if there is one.

    Note:
        Frames should be as far apart as the keyframes that the model was trained with, 0.5 s for
        nuScenes, and the cameras in the order of its camera embeddings.

    Example:
        >>> detector = StreamingDetector("config.py", "epoch_24.pth")  # doctest: +SKIP
        >>> front = dict(img=image, cam2img=intrinsics, lidar2cam=extrinsics)  # doctest: +SKIP
        >>> detector(dict(FRONT=front), ego2global=pose, lidar2ego=mount)  # doctest: +SKIP
    """

    def __init__(
        self, config: Config | str | Path, weights: str | Path | None, *, device: str | None = None
    ) -> None:
        config = config if isinstance(config, Config) else Config.fromfile(config)
        init_default_scope("mmdet3d")
        dataset = config.test_dataloader.dataset
        self.frames = tuple(dataset.frames)
        self.frame_pipeline = Compose(list(dataset.frame_pipeline))
        self.pipeline = Compose(list(dataset.pipeline))
        # The current frame and those before it.
        self.history: deque[dict] = deque(maxlen=1 - self.frames[0])
        self.names: tuple[str, ...] | None = None
        self.count = 0
        known = [offset for offset in self.frames if offset <= 0]
        model = {**config.model, "cached_frames": useful_capacity(known)}
        self.model = revert_sync_batchnorm(MODELS.build(model))
        if weights is not None:
            load_released(self.model, weights)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(device).eval()

    def reset(self) -> None:
        """Forgets the frames so far, such as at the beginning of another scene."""
        self.history.clear()
        self.names = None
        self.model.cache.clear()

    def __call__(
        self,
        cameras: Mapping[str, Mapping[str, np.ndarray]],
        *,
        ego2global: np.ndarray,
        lidar2ego: np.ndarray | None = None,
    ) -> InstanceData:
        """Detects objects in the next frame.

        Args:
            cameras: By name, in the same order in every frame: ``img`` (H, W, 3) uint8, BGR, all
                of one size after the frame pipeline, ``cam2img`` (3, 3), and ``lidar2cam``
                (4, 4), from the LiDAR frame.
            ego2global: (4, 4), the ego pose in any fixed frame.
            lidar2ego: (4, 4), the mounting of the LiDAR; by default the LiDAR frame is the ego
                frame, with x to the right and y ahead.

        Returns:
            ``bboxes_3d`` in the LiDAR frame, ``scores_3d`` and ``labels_3d``, in descending order
            of score.

        Raises:
            ValueError: The model has another number of cameras, the names differ from those of the
                frame before, or an image or a matrix has another shape or dtype.
        """
        self._check(cameras, dict(ego2global=ego2global, lidar2ego=lidar2ego))
        augmentation: dict[str, Any] = {}
        frame = self.frame_pipeline(dict(images=dict(cameras), augmentation=augmentation))
        frame["lidar2global"] = np.asarray(ego2global, np.float64)
        if lidar2ego is not None:
            frame["lidar2global"] = frame["lidar2global"] @ lidar2ego
        # A stream may be one of several of a process: nothing else has this token.
        frame["token"] = (id(self), self.count)
        self.history.append(frame)
        frames = [self._past(offset) for offset in self.frames]
        sample = dict(
            sample_idx=self.count,
            token=str(self.count),
            timestamp=0.0,
            ego2global=ego2global,
            box_type_3d=LiDARInstance3DBoxes,
            box_mode_3d=Box3DMode.LIDAR,
            images=dict(cameras),
            frame_offsets=self.frames,
            frames=frames,
            frame_tokens=tuple(past and past["token"] for past in frames),
            augmentation=augmentation,
        )
        self.count += 1
        try:
            batch = pseudo_collate([self.pipeline(sample)])
        except ValueError:
            self.history.pop()
            raise
        with torch.no_grad():
            (result,) = self.model.test_step(batch)
        return result.pred_instances_3d

    def _check(
        self, cameras: Mapping[str, Mapping[str, np.ndarray]], poses: Mapping[str, Any]
    ) -> None:
        expected = len(self.model.pts_bbox_head.transformer.cams_embeds)
        if len(cameras) != expected:
            raise ValueError(f"cameras: expected {expected}, as the model has, got {len(cameras)}")
        names = tuple(cameras)
        if self.names not in (None, names):
            raise ValueError(
                f"cameras: expected {', '.join(self.names)} in this order, as in the frame before, "
                f"got {', '.join(names)}; call reset() first for other cameras"
            )
        for name, camera in cameras.items():
            if missing := {"img", "cam2img", "lidar2cam"} - camera.keys():
                raise ValueError(f"camera {name}: {', '.join(sorted(missing))} is missing")
            image = camera["img"]
            shape, dtype = np.shape(image), getattr(image, "dtype", None)
            if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
                raise ValueError(
                    f"img of camera {name}: expected uint8 (H, W, 3), got {dtype} {shape}"
                )
            _check_matrix(f"cam2img of camera {name}", camera["cam2img"], 3)
            _check_matrix(f"lidar2cam of camera {name}", camera["lidar2cam"], 4)
        for name, pose in poses.items():
            if pose is not None:
                _check_matrix(name, pose, 4)
        self.names = names

    def _past(self, offset: int) -> dict | None:
        """An earlier frame, with its matrices from the current LiDAR frame."""
        index = len(self.history) - 1 + offset
        if not 0 <= index < len(self.history):
            return None
        frame = self.history[index]
        poses = (torch.from_numpy(f["lidar2global"]) for f in (self.history[-1], frame))
        motion = ego_motion(*poses, torch.eye(4, dtype=torch.float64)).numpy()
        lidar2cam = frame["lidar2cam"] @ np.linalg.inv(motion)
        return {**frame, "lidar_to_current": motion, "lidar2cam": lidar2cam}


def _check_matrix(name: str, matrix: Any, size: int) -> None:
    if np.shape(matrix) != (size, size):
        raise ValueError(f"{name}: expected a matrix ({size}, {size}), got {np.shape(matrix)}")
    # The numbers of a transposed pose are finite too, but its last row is none of a pose.
    last = [0.0] * (size - 1) + [1.0]
    if not np.isfinite(matrix).all() or not np.allclose(np.asarray(matrix)[-1], last):
        raise ValueError(f"{name}: expected finite elements and the last row {last}")
