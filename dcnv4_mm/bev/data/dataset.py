"""nuScenes with several frames per sample."""

import copy
import logging
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet3d.datasets import NuScenesDataset
from mmengine.logging import print_log
from mmengine.structures import InstanceData

from dcnv4_mm.bev.data.infos import read_infos
from dcnv4_mm.bev.data.mono import from_cam_instances
from dcnv4_mm.bev.geometry import ego_motion

__all__ = ["CAMERAS", "CLASSES", "BEVFormerV2NuScenesDataset"]

# In the order that the released camera embeddings have.
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
# In the order of the released models, which is not mmdet3d's.
CLASSES = (
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
)
_SCENE_FIELDS = ("scene_token", "frame_idx")
_EXTEND = "extend the infos with tools/dataset_converters/add_bevformerv2_infos.py"
# Without scenes: consecutive samples further apart than this do not belong together.
_MAX_SECONDS, _MAX_METRES = 1.2, 40.0
_IMAGE_SIZE = (900, 1600)


class _Scenes:
    """The samples of a complete info file by scene and keyframe, shared by all its subsets.

    Args:
        keyframes: (scene, keyframe) by token.
        tokens: In the order of the file.
    """

    samples: "BEVFormerV2NuScenesDataset"

    def __init__(self, keyframes: dict[str, tuple[Any, int]], tokens: Sequence[str]) -> None:
        self._keyframes = keyframes
        self._indices = {keyframes[token]: index for index, token in enumerate(tokens)}

    def __deepcopy__(self, memo: dict) -> "_Scenes":
        # mmengine copies a dataset to make a subset; the file stays the same.
        return self

    def keyframe(self, token: str) -> tuple[Any, int]:
        """Scene and keyframe of a sample."""
        return self._keyframes[token]

    def neighbour(self, token: str, offset: int) -> dict | None:
        """Info of the sample some keyframes after the one with a token, in the same scene."""
        scene, keyframe = self._keyframes[token]
        index = self._indices.get((scene, keyframe + offset))
        return None if index is None else self.samples.get_data_info(index)


class BEVFormerV2NuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes dataset with the images of neighbouring keyframes.

    The samples stay in the order of the info file: mmdet3d's metric relies on it. Those of a
    subset, by ``indices`` or ``get_subset``, have the same frames as in the complete file.

    Args:
        frames: Keyframe offsets, ascending, 0 among them; a keyframe is half a second.
        frame_pipeline: Transforms of the images of one frame. The frames of a sample share the
            dictionary ``augmentation``, for random values that must be the same in all of them.
        pipeline: Transforms of the sample, whose frames are in ``frames``, ``None`` for a missing
            one.
        mono_source: Source of the objects per image: ``"mono_instances"``, exact, from
            ``add_bevformerv2_infos.py``; ``"cam_instances"``, mmdet3d's own, up to a degree off;
            ``None`` for none.
        cameras: Names of the cameras in the order of the model's camera embeddings.
        cached_frames: In test mode, the number of frames whose images are kept after
            ``frame_pipeline``, in each worker; it must then be deterministic.
        fallback_scene_split: Derives the scenes of infos without scene fields from gaps in time
            and location. It may join two scenes: for tests.
        image_size: (H, W) of the images, for ``"cam_instances"``.
        kwargs: As in mmdet3d.

    Raises:
        ValueError: The frames are not ascending, the classes not in the released order, or the
            infos are of another version, have other cameras or lack a field.
    """

    def __init__(
        self,
        *args: Any,
        frames: Sequence[int] = (0,),
        frame_pipeline: Sequence[Any] = (),
        mono_source: str | None = "mono_instances",
        cameras: Sequence[str] = CAMERAS,
        cached_frames: int = 0,
        fallback_scene_split: bool = False,
        image_size: tuple[int, int] = _IMAGE_SIZE,
        **kwargs: Any,
    ) -> None:
        frames = tuple(frames)
        if 0 not in frames or any(a >= b for a, b in pairwise(frames)):
            raise ValueError(f"frames must be ascending keyframe offsets with 0, got {frames}")
        if mono_source not in ("mono_instances", "cam_instances", None):
            raise ValueError(
                "mono_source must be 'mono_instances', 'cam_instances' or None, got "
                f"{mono_source!r}"
            )
        metainfo = {"classes": CLASSES, **kwargs.pop("metainfo", {})}
        if tuple(metainfo["classes"]) != tuple(sorted(metainfo["classes"])):
            raise ValueError(
                "metainfo.classes must be in alphabetical order, as in the released models, got "
                f"{metainfo['classes']}"
            )
        self.frames, self.image_size = frames, tuple(image_size)
        self.cameras, self.cached_frames = tuple(cameras), cached_frames
        self._cache: OrderedDict[str, dict] = OrderedDict()
        self.mono_source = mono_source
        self.fallback_scene_split = fallback_scene_split
        self.frame_pipeline = Compose(list(frame_pipeline))
        super().__init__(
            *args,
            metainfo=metainfo,
            modality=dict(use_camera=True, use_lidar=False),
            box_type_3d="LiDAR",
            use_valid_flag=True,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Loads the infos in the order of the file, and notes the order within each scene."""
        content = read_infos(self.ann_file, self.backend_args)
        version = content["metainfo"].get("version")
        if version != self._metainfo["version"]:
            raise ValueError(
                f"{self.ann_file} is of {version}, metainfo.version says "
                f"{self._metainfo['version']}"
            )
        for key, value in content["metainfo"].items():
            self._metainfo.setdefault(key, value)
        # As the parent does, without reading the file again.
        infos = [self.parse_data_info(info) for info in content["data_list"]]
        needed = [] if self.fallback_scene_split else list(_SCENE_FIELDS)
        if self.mono_source and not self.test_mode:
            needed.append(self.mono_source)
        for info in infos:
            absent = [name for name in needed if name not in info]
            if absent:
                raise ValueError(
                    f"{self.ann_file} lacks {', '.join(absent)} in sample {info['token']}: "
                    f"{_EXTEND}"
                )
            cameras = tuple(info["images"])
            if cameras != self.cameras:
                raise ValueError(
                    f"cameras: expected {self.cameras} in this order, as the config says, got "
                    f"{cameras} in {self.ann_file}"
                )
        keyframes = (
            self._guess_scenes(infos)
            if self.fallback_scene_split
            else [(info["scene_token"], info["frame_idx"]) for info in infos]
        )
        tokens = [info["token"] for info in infos]
        self._scenes = _Scenes(dict(zip(tokens, keyframes, strict=True)), tokens)
        return infos

    def full_init(self) -> None:
        """Loads the complete file, keeps it for the frames, then selects the subset."""
        if self._fully_initialized:
            return
        part, self._indices = self._indices, None
        super().full_init()
        self._indices = part
        self._scenes.samples = copy.copy(self)
        if part is not None:
            everything = range(len(self))
            if isinstance(part, int):
                chosen = everything[:part] if part >= 0 else everything[part:]
            else:
                chosen = [everything[index] for index in part]
            self.get_subset_(list(chosen))

    @staticmethod
    def _guess_scenes(infos: Sequence[dict]) -> list[tuple[int, int]]:
        print_log(
            "Scenes are derived from gaps in time and location",
            logger="current",
            level=logging.WARNING,
        )
        keyframes: list[tuple[int, int]] = []
        for index, info in enumerate(infos):
            last = infos[index - 1] if index else None
            jump = last is None or not (
                0 < info["timestamp"] - last["timestamp"] <= _MAX_SECONDS
                and np.linalg.norm(
                    np.asarray(info["ego2global"])[:3, 3] - np.asarray(last["ego2global"])[:3, 3]
                )
                <= _MAX_METRES
            )
            last_scene, last_index = keyframes[-1] if keyframes else (0, 0)
            keyframes.append((index, 0) if jump else (last_scene, last_index + 1))
        return keyframes

    def neighbour(self, index: int, offset: int) -> dict | None:
        """Info of the sample some keyframes later in the same scene, if there is one.

        It need not belong to this dataset, if that is a subset of the file.

        Args:
            index: Index of a sample of this dataset.
            offset: Number of keyframes.
        """
        return self._scenes.neighbour(self.get_data_info(index)["token"], offset)

    def scene(self, index: int) -> list[int]:
        """Indices of the samples of the same scene in this dataset, in the order of time."""
        scene, _ = self._scenes.keyframe(self.get_data_info(index)["token"])
        keyframes = [
            self._scenes.keyframe(self.get_data_info(i)["token"]) for i in range(len(self))
        ]
        found = [i for i, (other, _) in enumerate(keyframes) if other == scene]
        return sorted(found, key=lambda i: keyframes[i][1])

    def ground_truth(self, index: int) -> InstanceData:
        """The annotated objects of a sample, as ``bboxes_3d`` and ``labels_3d``."""
        annotations = self.parse_ann_info(copy.deepcopy(self.get_data_info(index)))
        kept = torch.from_numpy(annotations["gt_labels_3d"] >= 0)
        labels = torch.from_numpy(annotations["gt_labels_3d"])
        return InstanceData(bboxes_3d=annotations["gt_bboxes_3d"][kept], labels_3d=labels[kept])

    def prepare_data(self, index: int) -> dict | None:
        """Prepares one sample; ``None`` in training if it has no objects."""
        current = self.get_data_info(index)
        info = copy.deepcopy(current)
        training = not self.test_mode
        if training and self.mono_source:
            info["mono_instances"] = self._mono_instances(info)
        if training and self.filter_empty_gt:
            no_mono = self.mono_source and not any(info["mono_instances"].values())
            if no_mono or not (info["ann_info"]["gt_labels_3d"] >= 0).any():
                return None
        augmentation: dict[str, Any] = {}
        frames: list[dict | None] = []
        tokens: list[str | None] = []
        for offset in self.frames:
            other = self._scenes.neighbour(current["token"], offset)
            frames.append(None if other is None else self._frame(current, other, augmentation))
            tokens.append(None if other is None else other["token"])
        sample = {
            **info,
            "frame_offsets": self.frames,
            "frames": frames,
            "frame_tokens": tuple(tokens),
            "augmentation": augmentation,
            "box_type_3d": self.box_type_3d,
            "box_mode_3d": self.box_mode_3d,
        }
        packed = self.pipeline(sample)
        if training and self.filter_empty_gt and packed is not None:
            packed_sample = packed["data_samples"]
            no_mono = self.mono_source and not len(packed_sample.gt_mono_instances)
            if no_mono or not len(packed_sample.gt_instances_3d.labels_3d):
                return None
        return packed

    def _frame(self, current: dict, info: dict, augmentation: dict) -> dict:
        """Images and matrices of a frame, with the motion to the current LiDAR frame."""
        frame = self._cache.get(info["token"])
        if frame is None:
            images = dict(images=info["images"], augmentation=augmentation)
            frame = self.frame_pipeline(images)
            if self.test_mode and self.cached_frames:
                self._cache[info["token"]] = frame
                if len(self._cache) > self.cached_frames:
                    self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(info["token"])
            augmentation.update(frame["augmentation"])
        motion = ego_motion(
            *(
                torch.tensor(np.asarray(matrix))
                for matrix in (
                    current["ego2global"],
                    info["ego2global"],
                    current["lidar_points"]["lidar2ego"],
                )
            )
        )
        # From the current LiDAR frame through the frame's own.
        lidar2cam = frame["lidar2cam"] @ np.linalg.inv(motion.numpy())
        return {**frame, "lidar_to_current": motion.numpy(), "lidar2cam": lidar2cam}

    def _mono_instances(self, info: dict) -> dict[str, list[dict]]:
        """Objects per camera, with the labels of the model."""
        if self.mono_source == "cam_instances":
            found = {
                camera: from_cam_instances(info, camera, self.image_size) for camera in self.cameras
            }
        else:
            found = info["mono_instances"]
        mapping = self.label_mapping
        return {
            camera: [
                {**entry, "bbox_label": mapping[entry["bbox_label"]]}
                for entry in entries
                if mapping[entry["bbox_label"]] >= 0
            ]
            for camera, entries in found.items()
        }
