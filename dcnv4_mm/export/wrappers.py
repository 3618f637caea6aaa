"""Functions of tensors that are exported from the hosts' models, with example inputs."""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dcnv4_mm.integrations import swap_deformable_attention


class ExportWrapper(nn.Module):
    """A function of normalized images (N, 3, H, W) that is exported from a model.

    It returns its outputs by name. The names of its arguments are those of the inputs.

    Attributes:
        task: "classification", "detection", "detection3d", "segmentation" or "features".
        free: The dynamic dims of every input.
        ranked: Whether rounding can change the order of the outputs, and with it single elements.
        pads: Whether it pads the images itself.
    """

    task = ""
    free: tuple[tuple[int, ...], ...] = ((0, 2, 3),)
    ranked = False
    pads = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def dynamic_shapes(self) -> tuple:
        """The dynamic dims as ``torch.export`` takes them."""
        return tuple(dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for dims in self.free)

    def examples(
        self, batch: int, height: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Random inputs of the given size."""
        return (torch.randn(batch, 3, height, width, generator=generator),)


class Classes(ExportWrapper):
    """Logits of an image classifier of mmpretrain."""

    task = "classification"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(image, mode="tensor")}


class Maps(ExportWrapper):
    """Feature maps of the neck, the input of a detector's heads: features_0, features_1, ..."""

    task = "features"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {f"features_{i}": x for i, x in enumerate(self.model.extract_feat(image))}


class Boxes(ExportWrapper):
    """Detections of our DINO, the best first.

    Outputs are boxes (N, K, 4: x1, y1, x2, y2 in pixels of the input), scores (N, K) and labels
    (N, K), with K the smaller of the head's ``max_per_img`` and all pairs of query and class.
    """

    task = "detection"
    # Proposals become queries in the order of their scores.
    ranked = True

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        size = image.shape[2:]
        # Of the samples, the transformer asks whether any image is padded.
        samples = [SimpleNamespace(batch_input_shape=size, img_shape=size)]
        classes, boxes = (outputs[-1] for outputs in self.model._forward(image, samples))
        num_queries, num_classes = classes.shape[1:]
        limit = (self.model.test_cfg or {}).get("max_per_img", num_queries)
        scores = classes.sigmoid().flatten(1)
        scores, indices = scores.topk(min(limit, num_queries * num_classes))
        queries = (indices // num_classes).unsqueeze(-1).expand(-1, -1, 4)
        x, y, w, h = boxes.gather(1, queries).unbind(-1)
        corners = [
            ((center + sign * extent / 2) * length).clamp(min=0).clamp(max=length)
            for sign in (-1, 1)
            for center, extent, length in ((x, w, size[1]), (y, h, size[0]))
        ]
        boxes = torch.stack(corners, -1)
        return {"boxes": boxes, "scores": scores, "labels": indices % num_classes}


class Logits(ExportWrapper):
    """Logits (N, classes, h, w) of a segmentor of mmseg, and its label map (N, H, W)."""

    task = "segmentation"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        head = self.model.decode_head
        logits = head(self.model.extract_feat(image))
        resized = _resize(logits, image, head.align_corners)
        if logits.shape[1] == 1:
            labels = (resized.sigmoid() > head.threshold).long().squeeze(1)
        else:
            labels = resized.argmax(1)
        return {"logits": logits, "segmentation": labels}


class Masks(ExportWrapper):
    """Predictions of Mask2Former.

    Outputs are the class logits (N, Q, classes + 1) and mask logits (N, Q, h, w) of every query,
    and the label map (N, H, W).
    """

    task = "segmentation"

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        head = self.model.decode_head
        classes, masks = (outputs[-1] for outputs in head(self.model.extract_feat(image), None))
        # As in mmseg: masks are resized before the sigmoid.
        weights, resized = classes.softmax(-1)[..., :-1], _resize(masks, image, False).sigmoid()
        labels = torch.einsum("nqc, nqhw -> nchw", weights, resized).argmax(1)
        return {"logits": classes, "masks": masks, "segmentation": labels}


def _resize(maps: Tensor, image: Tensor, align_corners: bool) -> Tensor:
    return interpolate(maps, image.shape[2:], mode="bilinear", align_corners=align_corners)


class Boxes3D(ExportWrapper):
    """Boxes and scores of every query of our BEVFormer v2, and the history for the next frame.

    Inputs, for cameras in the order of the model's embeddings:

    - images (N, cameras, 3, H, W) of the newest frame,
    - projections (N, T, cameras, 4, 4) from the LiDAR frame of the current frame to the pixels of
      each frame,
    - with more than one frame: whether each of them exists (N, T), and the history: the feature
      maps of the K frames before the newest one by level, (N, K, cameras, C, h, w).

    Outputs are boxes (N, Q, 9: gravity centre, length, width, height, yaw, velocity) in the LiDAR
    frame of the current frame, scores (N, Q, classes), and the history of the next frame.

    Args:
        model: The detector.
        frames: The keyframe offsets of its dataset.
        online: Whether the newest frame is the current one, and future frames are missing.
            Otherwise the newest one is the last of ``frames``.

    Attributes:
        offsets: The offsets of the T frames.

    Raises:
        ValueError: The model warps BEV features, or has proposal queries.
    """

    task = "detection3d"

    def __init__(self, model: nn.Module, frames: Sequence[int], *, online: bool = False) -> None:
        super().__init__(model)
        if model.temporal_alignment != "projection":
            raise ValueError("no export of a BEVFormer v2 with temporal_alignment='warp'")
        if model.pts_bbox_head.num_proposal_queries:
            raise ValueError("no export of a BEVFormer v2 with proposal queries")
        newest = 0 if online else frames[-1]
        self.offsets = tuple(offset for offset in frames if offset <= newest)
        self.num_future = len(frames) - len(self.offsets)
        self.history_length = newest - frames[0]
        levels = model.pts_bbox_head.num_levels if self.history_length else 0
        self.free = ((0, 3, 4), (0,), *(((0,),) if levels else ()), *[(0, 4, 5)] * levels)

    def dynamic_shapes(self) -> tuple:
        """The dynamic dims as ``torch.export`` takes them; the history is one argument."""
        shapes = super().dynamic_shapes()
        return (*shapes[:3], shapes[3:]) if self.history_length else shapes

    def forward(
        self,
        images: Tensor,
        lidar_to_image: Tensor,
        exists: Tensor | None = None,
        *history: Tensor,
    ) -> dict[str, Tensor]:
        head = self.model.pts_bbox_head
        levels = self.model.extract_feat(images, [{}])[: head.num_levels]
        windows = [level.unsqueeze(1) for level in levels]
        if history:
            windows = [torch.cat(parts, 1) for parts in zip(history, windows, strict=True)]
        indices = [offset - self.offsets[0] for offset in self.offsets]
        features = [torch.stack([w[:, i] for i in indices], 1).flatten(0, 1) for w in windows]
        size = (images.shape[-2], images.shape[-1])
        bevs = head.encode(features, lidar_to_image.flatten(0, 1), size)
        bevs = bevs.unflatten(0, (-1, len(indices)))
        if exists is None:
            exists = torch.ones_like(lidar_to_image[:, :, 0, 0, 0], dtype=torch.bool)
        if self.num_future:
            bevs, exists = (
                torch.cat((x, torch.zeros_like(torch.cat([x[:, :1]] * self.num_future, 1))), 1)
                for x in (bevs, exists)
            )
        logits, codes = head(bevs, exists, self.offsets.index(0))
        boxes = head.coder.boxes(codes[-1])
        following = [window[:, 1:] for window in windows] if history else []
        named = {f"next_history_{i}": x for i, x in enumerate(following)}
        return {"boxes": boxes, "scores": logits[-1].sigmoid(), **named}

    def examples(
        self, batch: int, height: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Random images of cameras at the car's center that face all directions, as it drives."""
        cameras = len(self.model.pts_bbox_head.transformer.cams_embeds)
        images = torch.randn(batch, cameras, 3, height, width, generator=generator)
        angles = torch.arange(cameras) * (2 * math.pi / cameras)
        sin, cos, zero = angles.sin(), angles.cos(), torch.zeros(cameras)
        # Rows are the camera's right, down and forward in x right, y ahead, z up.
        axes = torch.stack((cos, -sin, zero, zero, zero, zero - 1, sin, cos, zero), -1)
        intrinsics = torch.tensor(
            [[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]
        )
        projections = torch.eye(4).repeat(len(self.offsets), cameras, 1, 1)
        projections[..., :3, :3] = intrinsics @ axes.unflatten(-1, (3, 3))
        motion = torch.eye(4).repeat(len(self.offsets), 1, 1)
        motion[:, 1, 3] = -2.0 * torch.tensor(self.offsets)
        projections = (projections @ motion.unsqueeze(1)).repeat(batch, 1, 1, 1, 1)
        if not self.history_length:
            return images, projections
        exists = torch.ones(batch, len(self.offsets), dtype=torch.bool)
        # One sample is at the start of a scene.
        exists[0, : self.offsets.index(0)] = False
        levels = self.model.extract_feat(images[:1], [{}])[: self.model.pts_bbox_head.num_levels]
        history = [
            level.std()
            * torch.randn(batch, self.history_length, *level.shape[1:], generator=generator)
            for level in levels
        ]
        return images, projections, exists, *history


def wrap_for_export(
    model: nn.Module, host: str, frames: Sequence[int] = (0,), *, online: bool = False
) -> ExportWrapper:
    """Wraps a host's model for export; its deformable attention uses this package's operator.

    Args:
        model: The model.
        host: Scope of the model's registry.
        frames: Of BEVFormer v2: the keyframe offsets of its dataset.
        online: Of BEVFormer v2: see :class:`Boxes3D`.

    Raises:
        ValueError: Models of this host or with these settings are not supported.
    """
    if host == "mmpretrain":
        return Classes(model)
    if host == "mmdet":
        from dcnv4_mm.integrations._mmdet import DINO

        swap_deformable_attention(model)
        if isinstance(model, DINO):
            return Boxes(model)
        # torchvision is needed by these detectors alone.
        from dcnv4_mm.export.two_stage import Instances, why_not_instances

        return Maps(model) if why_not_instances(model) else Instances(model)
    if host == "mmseg":
        swap_deformable_attention(model)
        return Masks(model) if hasattr(model.decode_head, "pixel_decoder") else Logits(model)
    if host == "mmdet3d" and hasattr(getattr(model, "pts_bbox_head", None), "encode"):
        return Boxes3D(model, frames, online=online)
    raise ValueError(f"no export of a {type(model).__name__} of {host}")
