"""Transforms: loading, image and BEV augmentation, targets of the perspective head, packing."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PhotoMetricDistortion
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData
from PIL import Image

from dcnv4_mm.bev.geometry import bev_augmentation_matrix

__all__ = [
    "BEVAugmentation",
    "LoadMultiViewImageFromFiles",
    "MonoTargets",
    "Pack3DDetInputs",
    "PhotoMetricDistortionMultiViewImage",
    "ResizeCropFlipImage",
]

# First and last bytes of complete JPEG and PNG files.
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}


class LoadMultiViewImageFromFiles(BaseTransform):
    """Loads the images and matrices of one frame.

    Sets ``imgs``, a list of BGR images, ``cam2img`` (N, 3, 3) and ``lidar2cam`` (N, 4, 4), from
    the frame's own LiDAR frame. A camera is a dictionary with ``img_path``, or an array ``img``,
    and the two matrices.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: An image is damaged.
    """

    def transform(self, results: dict) -> dict:
        cameras = results["images"].values()
        results["imgs"] = [c["img"] if "img" in c else _read_image(c["img_path"]) for c in cameras]
        results["cam2img"] = np.array([np.asarray(c["cam2img"])[:3, :3] for c in cameras])
        results["lidar2cam"] = np.array([c["lidar2cam"] for c in cameras], dtype=np.float64)
        return results


def _read_image(path: str) -> np.ndarray:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no image {path}: check data_root and data_prefix")
    content = Path(path).read_bytes()
    # A decoder silently fills the rest of a truncated file with grey.
    complete = content.rstrip(b"\0").endswith(_ENDS.get(content[:2], b""))
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None or not complete:
        raise ValueError(f"the image {path} is damaged or truncated: download it again")
    return image


class ResizeCropFlipImage(BaseTransform):
    """Crops the sky, resizes, and decides whether the model mirrors the images.

    All images of a sample share the random values. The intrinsics follow crop and scale; mirroring
    changes no geometry, as the model mirrors the feature maps back.

    Args:
        heights: Heights after resizing, one of which is drawn per sample.
        crop_top: Ratio of the image's height that is cropped.
        flip_prob: Probability that a sample is mirrored.
    """

    def __init__(
        self,
        *,
        heights: Sequence[int] = (640,),
        crop_top: float = 260 / 900,
        flip_prob: float = 0.0,
    ) -> None:
        self.heights, self.crop_top, self.flip_prob = tuple(heights), crop_top, flip_prob

    def transform(self, results: dict) -> dict:
        shared = results["augmentation"]
        if "height" not in shared:
            shared.update(height=random.choice(self.heights), flip=random.random() < self.flip_prob)
        height = shared["height"]
        imgs, intrinsics = [], []
        for image, cam2img in zip(results["imgs"], results["cam2img"], strict=True):
            top = round(image.shape[0] * self.crop_top)
            cropped = image[top:]
            scale = height / cropped.shape[0]
            size = (int(cropped.shape[1] * scale), height)
            if size != (cropped.shape[1], cropped.shape[0]):
                img = Image.fromarray(cropped).resize(size, Image.Resampling.BICUBIC)
                cropped = np.asarray(img)
            imgs.append(cropped)
            shift = np.array([[scale, 0, 0], [0, scale, -top * scale], [0, 0, 1]])
            intrinsics.append(shift @ cam2img)
        shared.update(top=top, scale=scale)
        results["imgs"], results["cam2img"] = imgs, np.array(intrinsics)
        return results


class PhotoMetricDistortionMultiViewImage(BaseTransform):
    """mmdet's photometric distortion, with random values of its own for each image.

    Unlike the original it clips values that leave the range of a byte, where that wraps them, and
    saturation to 1, as mmdet does; and the configs apply it after the resize, which is half the
    work.
    """

    def __init__(self) -> None:
        self.distortion = PhotoMetricDistortion()

    def transform(self, results: dict) -> dict:
        results["imgs"] = [
            self.distortion(dict(img=image))["img"].clip(0, 255).astype(np.uint8)
            for image in results["imgs"]
        ]
        return results


class BEVAugmentation(BaseTransform):
    """Rotates, scales and mirrors the objects; the model does the same to the BEV features.

    Args:
        max_angle: Maximum rotation, in radians.
        scales: Minimum and maximum scale.
        flip_prob: Probability of negating x, and of negating y.
    """

    def __init__(
        self,
        *,
        max_angle: float = np.pi / 8,
        scales: tuple[float, float] = (0.95, 1.05),
        flip_prob: float = 0.5,
    ) -> None:
        self.max_angle, self.scales, self.flip_prob = max_angle, tuple(scales), flip_prob

    def transform(self, results: dict) -> dict:
        angle = random.uniform(-self.max_angle, self.max_angle)
        scale = random.uniform(*self.scales)
        flips = [random.random() < self.flip_prob for _ in range(2)]
        boxes = results["gt_bboxes_3d"]
        boxes.rotate(angle)
        boxes.scale(scale)
        # mmdet3d's names: vertical negates x, horizontal negates y.
        for flip, direction in zip(flips, ("vertical", "horizontal"), strict=True):
            if flip:
                boxes.flip(direction)
        results["bev_augmentation"] = bev_augmentation_matrix(angle, scale, *flips).numpy()
        return results


class MonoTargets(BaseTransform):
    """Collects the objects of the current images, with 2D boxes in the resized images.

    Args:
        min_size: Minimum width and height of a 2D box, in pixels.
    """

    def __init__(self, *, min_size: float = 1e-5) -> None:
        self.min_size = min_size

    def transform(self, results: dict) -> dict:
        shared = results["augmentation"]
        imgs = results["frames"][results["frame_offsets"].index(0)]["imgs"]
        entries, boxes, cameras = [], [], []
        for camera, (image, name) in enumerate(zip(imgs, results["images"], strict=True)):
            height, width = image.shape[:2]
            for entry in results["mono_instances"][name]:
                box = np.array(entry["bbox"]) - [0, shared["top"], 0, shared["top"]]
                box = np.clip(box * shared["scale"], 0, [width, height, width, height])
                if entry["center"][2] > 0 and (box[2:] - box[:2] > self.min_size).all():
                    entries.append(entry)
                    boxes.append(box)
                    cameras.append(camera)

        def column(name: str, *shape: int) -> torch.Tensor:
            values = [entry[name] for entry in entries]
            return torch.tensor(values, dtype=torch.float32).reshape(-1, *shape)

        results["gt_mono_instances"] = InstanceData(
            bboxes=torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
            labels=column("bbox_label").long(),
            quaternions=column("quat", 4),
            centers=column("center", 3),
            wlh=column("wlh", 3),
            attributes=column("attr").long(),
            speeds=column("speed"),
            cameras=torch.tensor(cameras, dtype=torch.int64),
        )
        return results


class Pack3DDetInputs(BaseTransform):
    """Packs a sample for the detector; the images stay uint8.

    Args:
        meta_keys: Further keys of the info to keep in the metainfo.

    Raises:
        ValueError: The images of a sample have different sizes.
    """

    def __init__(
        self,
        *,
        meta_keys: Sequence[str] = (
            "sample_idx",
            "token",
            "timestamp",
            "ego2global",
            "box_type_3d",
            "box_mode_3d",
        ),
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        frames = results["frames"]
        current = frames[results["frame_offsets"].index(0)]
        sizes = {image.shape[:2] for frame in frames if frame for image in frame["imgs"]}
        if len(sizes) > 1:
            raise ValueError(
                f"the images of a sample have {len(sizes)} sizes after the frame pipeline, "
                f"{sorted(sizes)}: resize or crop them to one, with their intrinsics"
            )
        nothing = [np.zeros_like(image) for image in current["imgs"]]
        imgs = np.stack(
            [image for frame in frames for image in (frame["imgs"] if frame else nothing)]
        )
        lidar2img = np.stack([_lidar_to_image(frame if frame else current) for frame in frames])
        motion = np.stack([(frame or current)["lidar_to_current"] for frame in frames])
        sample = Det3DDataSample(
            metainfo=dict(
                {key: results[key] for key in self.meta_keys},
                frames=tuple(results["frame_offsets"]),
                frame_tokens=results.get("frame_tokens"),
                frame_valid=tuple(frame is not None for frame in frames),
                lidar2img=lidar2img,
                lidar_to_current=motion,
                cam2img=current["cam2img"],
                lidar2cam=current["lidar2cam"],
                flip=results["augmentation"].get("flip", False),
                bev_augmentation=results.get("bev_augmentation"),
                img_shape=current["imgs"][0].shape[:2],
            )
        )
        sample.gt_instances_3d = InstanceData()
        if "gt_bboxes_3d" in results:
            sample.gt_instances_3d.bboxes_3d = results["gt_bboxes_3d"]
            sample.gt_instances_3d.labels_3d = torch.as_tensor(results["gt_labels_3d"])
        if "eval_ann_info" in results:
            sample.eval_ann_info = results["eval_ann_info"]
        if "gt_mono_instances" in results:
            sample.gt_mono_instances = results["gt_mono_instances"]
        pixels = torch.from_numpy(imgs).permute(0, 3, 1, 2).contiguous()
        return dict(inputs=dict(img=pixels), data_samples=sample)


def _lidar_to_image(frame: dict[str, Any]) -> np.ndarray:
    """(N, 4, 4), float64."""
    intrinsics = np.tile(np.eye(4), (len(frame["cam2img"]), 1, 1))
    intrinsics[:, :3, :3] = frame["cam2img"]
    return intrinsics @ frame["lidar2cam"]
