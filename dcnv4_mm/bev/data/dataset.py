"""nuScenes with several frames per sample."""

import copy
import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet3d.datasets import NuScenesDataset
from mmengine.fileio import load
from mmengine.logging import print_log

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
    """The samples of a whole info file by scene and keyframe, shared by all parts of it.

    Args:
        places: (scene, keyframe) by token.
        tokens: In the order of the file.
    """

    samples: "BEVFormerV2NuScenesDataset"

    def __init__(self, places: dict[str, tuple[Any, int]], tokens: Sequence[str]) -> None:
        self._places = places
        self._indices = {places[token]: index for index, token in enumerate(tokens)}

    def __deepcopy__(self, memo: dict) -> "_Scenes":
        # mmengine copies a dataset to make a part of it; the file stays the same.
        return self

    def neighbour(self, token: str, offset: int) -> dict | None:
        """Info of the sample some keyframes after the one with a token, in the same scene."""
        scene, keyframe = self._places[token]
        index = self._indices.get((scene, keyframe + offset))
        return None if index is None else self.samples.get_data_info(index)


class BEVFormerV2NuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes, whose samples bring the images of neighbouring keyframes along.

    The samples stay in the order of the info file: mmdet3d's metric relies on it. A part of it, by
    ``indices`` or ``get_subset``, has the frames that its samples have in the whole file.

    Args:
        frames: Keyframe offsets, ascending, 0 among them; a keyframe is half a second.
        frame_pipeline: Transforms of the images of one frame. All frames of a sample share the
            dictionary ``augmentation``, so that they share what is drawn into it.
        pipeline: Transforms of the sample, whose frames are in ``frames``, ``None`` where one is
            missing.
        mono_source: Where the objects of single images come from: ``"mono_instances"``,
            exact, by the info script; ``"cam_instances"``, mmdet3d's own, up to a degree off;
            ``None`` for none.
        fallback_scene_split: Guesses the scenes of infos that do not name them, from gaps in time
            and place. It may join two scenes: for tests.
        image_size: (H, W) of the images, for ``"cam_instances"``.
        kwargs: As in mmdet3d.

    Raises:
        ValueError: The frames are not ascending, the classes not in the released order, the
            version another than the infos', or the infos lack a field.
    """

    def __init__(
        self,
        *args: Any,
        frames: Sequence[int] = (0,),
        frame_pipeline: Sequence[Any] = (),
        mono_source: str | None = "mono_instances",
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
        content = load(self.ann_file)
        if not isinstance(content, dict) or not {"metainfo", "data_list"} <= content.keys():
            raise ValueError(
                f"{self.ann_file} has the format of mmdet3d 0.x: convert it with mmdet3d's "
                f"tools/dataset_converters/update_infos_to_v2.py, then {_EXTEND}; or make it anew "
                "with tools/dataset_converters/prepare_nuscenes.py"
            )
        version = content["metainfo"].get("version")
        if version != self._metainfo["version"]:
            raise ValueError(
                f"{self.ann_file} is of {version}, metainfo.version says "
                f"{self._metainfo['version']}"
            )
        infos = super().load_data_list()
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
            if cameras != CAMERAS:
                raise ValueError(f"the cameras must be {CAMERAS} in this order, got {cameras}")
        places = (
            self._guess_scenes(infos)
            if self.fallback_scene_split
            else [(info["scene_token"], info["frame_idx"]) for info in infos]
        )
        tokens = [info["token"] for info in infos]
        self._scenes = _Scenes(dict(zip(tokens, places, strict=True)), tokens)
        return infos

    def full_init(self) -> None:
        """Loads the whole file, keeps it for the frames, and then takes the part asked for."""
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
            "Scenes are guessed from gaps in time and place",
            logger="current",
            level=logging.WARNING,
        )
        places: list[tuple[int, int]] = []
        for index, info in enumerate(infos):
            last = infos[index - 1] if index else None
            jump = last is None or not (
                0 < info["timestamp"] - last["timestamp"] <= _MAX_SECONDS
                and np.linalg.norm(
                    np.asarray(info["ego2global"])[:3, 3] - np.asarray(last["ego2global"])[:3, 3]
                )
                <= _MAX_METRES
            )
            places.append((index, 0) if jump else (places[-1][0], places[-1][1] + 1))
        return places

    def neighbour(self, index: int, offset: int) -> dict | None:
        """Info of the sample some keyframes later in the same scene, if there is one.

        It may be one that this dataset, as a part of a file, does not have itself.

        Args:
            index: Index of a sample of this dataset.
            offset: Number of keyframes.
        """
        return self._scenes.neighbour(self.get_data_info(index)["token"], offset)

    def prepare_data(self, index: int) -> dict | None:
        """Makes one sample; ``None`` in training where there is nothing to learn."""
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
        for offset in self.frames:
            other = self._scenes.neighbour(current["token"], offset)
            frames.append(None if other is None else self._frame(current, other, augmentation))
        sample = {
            **info,
            "frame_offsets": self.frames,
            "frames": frames,
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
        return self.frame_pipeline(
            dict(
                images=info["images"],
                lidar_to_current=motion.numpy(),
                augmentation=augmentation,
            )
        )

    def _mono_instances(self, info: dict) -> dict[str, list[dict]]:
        """Objects per camera, with the labels of the model."""
        if self.mono_source == "cam_instances":
            found = {
                camera: from_cam_instances(info, camera, self.image_size) for camera in CAMERAS
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
