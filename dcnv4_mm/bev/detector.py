"""BEVFormerV2 as a detector of mmdet3d."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor, nn

from dcnv4_mm.bev.feature_cache import FeatureCache
from dcnv4_mm.bev.layers.grid_mask import GridMask
from dcnv4_mm.bev.layers.proposals import proposal_reference_points
from dcnv4_mm.bev.sample_geometry import SampleGeometry
from dcnv4_mm.bev.task_modules.suppression import merge_cameras

__all__ = ["BEVFormerV2"]


class BEVFormerV2(Base3DDetector):
    """Multi-frame, multi-camera 3D detector.

    The images of a sample are (T * N, 3, H, W), frame after frame. Its metainfo holds ``frames``,
    the keyframe offsets in ascending order; ``frame_valid``, which of them exist; ``lidar2img``
    (T, N, 4, 4), from the current LiDAR frame to pixels; ``lidar_to_current`` (T, 4, 4), each
    frame's ego motion; ``cam2img`` (N, 3, 3), the intrinsics of the current frame; optionally
    ``bev_augmentation`` (3, 3), the transform applied to the objects, and ``flip``, whether to
    mirror the images; for proposals ``lidar2cam`` (N, 4, 4) of the current frame. A training
    sample also has ``gt_mono_instances``, the objects of its current images.

    Other frames than the current one are encoded without gradients and in evaluation mode. A flip
    is undone on the feature maps, so it never changes the geometry.

    A BEV head with proposal queries takes the perspective head's boxes of the current images,
    without gradients. GridMask hides objects: ``grid_mask_prob`` should be low then.

    Args:
        img_backbone: The backbone.
        img_neck: The neck.
        pts_bbox_head: The BEV head.
        fcos3d_bbox_head: The perspective head, an auxiliary supervision; ``None`` for none.
        grid_mask_prob: Probability of GridMask on a training sample's current images.
        mono_loss_weight: Weight of the perspective losses.
        temporal_alignment: ``"projection"`` encodes another frame on the BEV grid of the current
            LiDAR frame, as released; ``"warp"`` encodes it on its own grid and warps the features
            by the ego motion, as in the paper. Their weights are not interchangeable.
        frames_per_batch: Number of frames without gradients that go through backbone and encoder
            at once; more need more memory.
        cached_frames: In evaluation, the number of frames whose feature maps, or with
            ``"warp"`` BEV features, are kept by ``frame_tokens`` of the metainfo, so that a frame
            is computed once for all samples that contain it; see :func:`useful_capacity`.
        legacy_flip: Mirrors images without their padding as the original does, which shifts
            the features of a padded image.
        data_preprocessor: As in mmdet3d.
        init_cfg: As in mmengine.

    Raises:
        ValueError: The alignment is unknown, or the BEV head has proposal queries and there is no
            perspective head.

    Source:
        Yang et al., "BEVFormer v2", CVPR 2023; as released, without proposals.
    """

    def __init__(
        self,
        *,
        img_backbone: dict,
        img_neck: dict,
        pts_bbox_head: dict,
        fcos3d_bbox_head: dict | None = None,
        grid_mask_prob: float = 0.7,
        mono_loss_weight: float = 1.0,
        temporal_alignment: str = "projection",
        frames_per_batch: int = 4,
        cached_frames: int = 0,
        legacy_flip: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if frames_per_batch < 1:
            raise ValueError(f"frames_per_batch: expected a number >= 1, got {frames_per_batch}")
        self.frames_per_batch, self.cache = frames_per_batch, FeatureCache(cached_frames)
        if temporal_alignment not in ("projection", "warp"):
            raise ValueError(
                f"temporal_alignment must be 'projection' or 'warp', got {temporal_alignment!r}"
            )
        self.temporal_alignment = temporal_alignment
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        self.pts_bbox_head = MODELS.build(pts_bbox_head)
        self.fcos3d_bbox_head = MODELS.build(fcos3d_bbox_head) if fcos3d_bbox_head else None
        if self.fcos3d_bbox_head is None and self.pts_bbox_head.num_proposal_queries:
            raise ValueError(
                "num_proposal_queries needs the perspective head: give fcos3d_bbox_head, or 0"
            )
        self.grid_mask = GridMask(grid_mask_prob)
        self.mono_loss_weight = mono_loss_weight
        self.legacy_flip = legacy_flip

    def train(self, mode: bool = True) -> "BEVFormerV2":
        """Sets the mode; the cached features may belong to other weights and are dropped."""
        self.cache.clear()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.cache.clear()
        super()._load_from_state_dict(*args)

    def extract_feat(self, images: Tensor, metas: Sequence[dict]) -> list[Tensor]:
        """Feature maps of the images of one frame.

        Args:
            images: (batch, num_cameras, 3, H, W), normalised and padded.
            metas: Metainfo of the samples.

        Returns:
            Levels (batch, num_cameras, channels, h, w), the finest first, not mirrored.
        """
        images = self.grid_mask(images)
        flipped = [bool(meta.get("flip")) for meta in metas]
        if any(flipped):
            images = torch.stack(
                [
                    self._mirror(sample, meta) if flip else sample
                    for sample, meta, flip in zip(images, metas, flipped, strict=True)
                ]
            )
        batch = images.shape[:2]
        levels = self.img_neck(self.img_backbone(images.flatten(0, 1)))
        levels = [level.unflatten(0, batch) for level in levels]
        if not any(flipped):
            return levels
        return [
            torch.stack([x.flip(-1) if flip else x for x, flip in zip(level, flipped, strict=True)])
            for level in levels
        ]

    def _mirror(self, images: Tensor, meta: dict) -> Tensor:
        width = meta["img_shape"][1] if self.legacy_flip else images.shape[-1]
        return torch.cat((images[..., :width].flip(-1), images[..., width:]), dim=-1)

    def encode(
        self, images: Tensor, metas: Sequence[dict], geometry: SampleGeometry | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """BEV features of all frames.

        Args:
            images: (B, T * N, 3, H, W).
            metas: Metainfo of the samples.
            geometry: Their matrices on the device; copied from ``metas`` by default.

        Returns:
            BEV features (batch, num_frames, num_queries, embed_dims), which of the frames exist
            (batch, num_frames), and the feature maps of the current frame; no maps where BEV
            features are cached instead.
        """
        frames = _check(images, metas)
        images = images.unflatten(1, (len(frames), -1))
        geometry = geometry or SampleGeometry.of(metas, images.device)
        current = frames.index(0)
        # With gradients, the current frame goes its own way, in the detector's own mode.
        inference = not self.training and not torch.is_grad_enabled()
        pairs = [
            (sample, frame)
            for frame in range(len(frames))
            for sample, meta in enumerate(metas)
            if meta["frame_valid"][frame] and (frame != current or inference)
        ]
        encoded: dict[tuple[int, int], Tensor] = {}
        features: list[Tensor] = []
        with _evaluating(self), torch.no_grad():
            kept: dict[tuple[int, int], list[Tensor]] = {}
            for first in range(0, len(pairs), self.frames_per_batch):
                part = pairs[first : first + self.frames_per_batch]
                bevs = self._encode_part(images, metas, part, geometry, kept if inference else None)
                encoded.update(zip(part, self._align(bevs, part, geometry), strict=True))
            if kept:
                rows = [kept[sample, current] for sample in range(len(metas))]
                features = [torch.stack(level) for level in zip(*rows, strict=True)]
        if not inference:
            features = self.extract_feat(images[:, current], metas)
            part = [(sample, current) for sample in range(len(metas))]
            bevs = self._encode(features, part, geometry, images)
            encoded.update(zip(part, self._align(bevs, part, geometry), strict=True))
        missing = torch.zeros_like(encoded[0, current])
        stacked = [
            torch.stack([encoded.get((sample, frame), missing) for frame in range(len(frames))])
            for sample in range(len(metas))
        ]
        return torch.stack(stacked), geometry.valid, features

    def _encode_part(
        self,
        images: Tensor,
        metas: Sequence[dict],
        pairs: Sequence[tuple[int, int]],
        geometry: SampleGeometry,
        kept: dict[tuple[int, int], list[Tensor]] | None,
    ) -> Tensor:
        """BEV features (P, Q, C) of some frames, before alignment; with ``kept`` by the cache.

        The feature maps of current frames are put into ``kept``, unless BEV features are cached.
        """
        keys = [kept is not None and self._key(metas[s], frame, images) for s, frame in pairs]

        def extract(indices: Sequence[int]) -> list[Tensor]:
            chosen = [pairs[index] for index in indices]
            pixels = torch.stack([images[pair] for pair in chosen])
            return self.extract_feat(pixels, [metas[sample] for sample, _ in chosen])

        def encode(indices: Sequence[int]) -> list[Tensor]:
            chosen = [pairs[index] for index in indices]
            return [self._encode(extract(indices), chosen, geometry, images)]

        if any(keys) and self._caches_bevs:
            return self.cache.fetch(keys, encode)[0]
        levels = self.cache.fetch(keys, extract)
        for index, (sample, frame) in enumerate(pairs):
            if kept is not None and geometry.is_current[frame]:
                kept[sample, frame] = [level[index] for level in levels]
        return self._encode(levels, pairs, geometry, images)

    @property
    def _caches_bevs(self) -> bool:
        # On its own grid a frame's BEV features are the same for all samples. Proposals, however,
        # need the feature maps.
        return self.temporal_alignment == "warp" and not self.pts_bbox_head.num_proposal_queries

    def _key(self, meta: dict, frame: int, images: Tensor) -> tuple | None:
        """Key of a frame's features in the cache; ``None`` if the frame has no token."""
        tokens = meta.get("frame_tokens")
        if not tokens or not self.cache.capacity:
            return None
        flip = bool(meta.get("flip"))
        return (tokens[frame], tuple(images.shape[-3:]), meta.get("img_shape"), flip, images.dtype)

    def _encode(
        self,
        levels: Sequence[Tensor],
        pairs: Sequence[tuple[int, int]],
        geometry: SampleGeometry,
        images: Tensor,
    ) -> Tensor:
        """BEV features (P, Q, C) of some frames: on the current grid, or to be warped on theirs."""
        own = self.temporal_alignment == "warp"
        matrices = geometry.own_lidar_to_image if own else geometry.lidar_to_image
        size = (images.shape[-2], images.shape[-1])
        return self.pts_bbox_head.encode(levels, torch.stack([matrices[p] for p in pairs]), size)

    def _align(
        self, bevs: Tensor, pairs: Sequence[tuple[int, int]], geometry: SampleGeometry
    ) -> Tensor:
        """Warps BEV features (P, Q, C) into the current LiDAR frame, and as the objects."""
        motion, augmentation = None, geometry.bev_augmentation
        moves = not all(geometry.is_current[frame] for _, frame in pairs)
        if self.temporal_alignment == "warp" and moves:
            motion = torch.stack([geometry.lidar_to_current[pair] for pair in pairs])
        if augmentation is not None:
            augmentation = torch.stack([augmentation[sample] for sample, _ in pairs])
        return self.pts_bbox_head.transformer.align(bevs, augmentation, motion)

    def loss(
        self,
        batch_inputs_dict: dict[str, Tensor],
        batch_data_samples: Sequence[Det3DDataSample],
        **kwargs: object,
    ) -> dict[str, Tensor]:
        """The losses of both heads."""
        metas = [sample.metainfo for sample in batch_data_samples]
        images = batch_inputs_dict["imgs"]
        geometry = SampleGeometry.of(metas, images.device)
        bevs, valid, features = self.encode(images, metas, geometry)
        proposals = self._proposals(features, metas)
        outputs = self.pts_bbox_head(bevs, valid, metas[0]["frames"].index(0), proposals)
        objects = [sample.gt_instances_3d for sample in batch_data_samples]
        losses = self.pts_bbox_head.loss_by_feat(*outputs, objects)
        if self.fcos3d_bbox_head is not None:
            losses.update(self._mono_loss(features, batch_data_samples, geometry.intrinsics))
        return losses

    def _mono_loss(
        self, features: Sequence[Tensor], samples: Sequence[Det3DDataSample], intrinsics: Tensor
    ) -> dict[str, Tensor]:
        """The perspective losses of all images with objects."""
        chosen, imgs = [], []
        for index, sample in enumerate(samples):
            objects = sample.gt_mono_instances
            cameras = objects.cameras.tolist()
            if cameras != sorted(cameras):
                objects = objects[objects.cameras.argsort(stable=True)]
                cameras.sort()
            for camera in dict.fromkeys(cameras):
                first = cameras.index(camera)
                img = objects[first : first + cameras.count(camera)]
                img.set_metainfo(dict(intrinsics=intrinsics[index, camera]))
                chosen.append((index, camera))
                imgs.append(img)
        weight = self.mono_loss_weight
        if not imgs:
            # The other ranks still wait for this one's reductions and gradients.
            chosen, weight = [(0, 0)], 0.0
            imgs = [samples[0].gt_mono_instances]
            imgs[0].set_metainfo(dict(intrinsics=intrinsics[0, 0]))
        levels = [torch.stack([level[pair] for pair in chosen]) for level in features]
        losses = self.fcos3d_bbox_head.loss(levels, imgs)
        return {f"{name}_mono": weight * loss for name, loss in losses.items()}

    def predict(
        self,
        batch_inputs_dict: dict[str, Tensor],
        batch_data_samples: Sequence[Det3DDataSample],
        **kwargs: object,
    ) -> list[Det3DDataSample]:
        """Adds ``pred_instances_3d`` to the samples, in descending order of score."""
        metas = [sample.metainfo for sample in batch_data_samples]
        outputs = self._forward(batch_inputs_dict, batch_data_samples)
        results = self.pts_bbox_head.predict_by_feat(*outputs, metas)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self,
        batch_inputs_dict: dict[str, Tensor],
        batch_data_samples: Sequence[Det3DDataSample],
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Class logits and box codes, as the BEV head returns them."""
        metas = [sample.metainfo for sample in batch_data_samples]
        bevs, valid, features = self.encode(batch_inputs_dict["imgs"], metas)
        proposals = self._proposals(features, metas)
        return self.pts_bbox_head(bevs, valid, metas[0]["frames"].index(0), proposals)

    @torch.no_grad()
    def _proposals(self, features: Sequence[Tensor], metas: Sequence[dict]) -> Tensor | None:
        """Reference points (B, K, 3) from the perspective head; ``None`` without proposals."""
        head = self.pts_bbox_head
        if not head.num_proposal_queries:
            return None
        cameras, device = features[0].shape[1], features[0].device
        with _evaluating(self.fcos3d_bbox_head):
            outputs = self.fcos3d_bbox_head([level.flatten(0, 1) for level in features])
        intrinsics = _stack([meta["cam2img"] for meta in metas], device).flatten(0, 1)
        imgs = self.fcos3d_bbox_head.predict_by_feat(outputs, intrinsics)
        found = [
            merge_cameras(
                imgs[sample * cameras : (sample + 1) * cameras],
                _stack([meta["lidar2cam"]], device)[0],
                max_num=head.num_proposal_queries,
            )
            for sample, meta in enumerate(metas)
        ]
        augmentation = None
        if metas[0].get("bev_augmentation") is not None:
            augmentation = _stack([meta["bev_augmentation"] for meta in metas], device)
        return proposal_reference_points(
            found, head.num_proposal_queries, head.coder.point_cloud_range, augmentation
        )


def _check(images: Tensor, metas: Sequence[dict]) -> tuple[int, ...]:
    frames = tuple(metas[0]["frames"])
    if any(tuple(meta["frames"]) != frames for meta in metas):
        raise ValueError("all samples of a batch must have the same frames")
    cameras = np.shape(metas[0]["lidar2img"])[1]
    if images.shape[1] != len(frames) * cameras:
        raise ValueError(
            f"{len(frames)} frames of {cameras} cameras make {len(frames) * cameras} images, "
            f"got {images.shape[1]}"
        )
    return frames


def _stack(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(device)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; restores the mode of every submodule."""
    if not module.training:
        yield
        return
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
