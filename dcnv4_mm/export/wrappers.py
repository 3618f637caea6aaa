"""Functions of tensors that are exported from the hosts' models, with example inputs."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from dcnv4_mm.integrations import swap_deformable_attention


class ExportWrapper(nn.Module):
    """A function of normalized images (N, 3, H, W) that is exported from a model.

    Attributes:
        free: The dynamic dims of every input.
        ranked: Whether rounding can change the order of the outputs, and with it single elements.
    """

    free: tuple[tuple[int, ...], ...] = ((0, 2, 3),)
    ranked = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def examples(
        self, batch: int, height: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Random inputs of the given size."""
        return (torch.randn(batch, 3, height, width, generator=generator),)


class Classes(ExportWrapper):
    """Logits of an image classifier of mmpretrain."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, mode="tensor")


class Maps(ExportWrapper):
    """Feature maps of the neck, the input of a detector's heads."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model.extract_feat(images)


class Boxes(ExportWrapper):
    """Class logits (N, Q, classes) and boxes (N, Q, 4: cx, cy, w, h in [0, 1]) of our DINO."""

    # Proposals become queries in the order of their scores.
    ranked = True

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = images.shape[2:]
        # Of the samples, the transformer asks whether any image is padded.
        samples = [SimpleNamespace(batch_input_shape=size, img_shape=size)]
        classes, boxes = self.model._forward(images, samples)
        return classes[-1], boxes[-1]


class Logits(ExportWrapper):
    """Logits (N, classes, h, w) of a segmentor of mmseg, before they are resized."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model.decode_head(self.model.extract_feat(images))


class Masks(ExportWrapper):
    """Class logits (N, Q, classes + 1) and mask logits (N, Q, h, w) of Mask2Former."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        classes, masks = self.model.decode_head(self.model.extract_feat(images), None)
        return classes[-1], masks[-1]


class BirdsEyeView(ExportWrapper):
    """BEV map (N, Q, C) of one frame, by the backbone, neck and encoder of BEVFormer v2.

    The inputs are images (N, cameras, 3, H, W) and projections (N, cameras, 4, 4), from the LiDAR
    frame to pixels.
    """

    free = ((0, 3, 4), (0,))

    def forward(self, images: Tensor, lidar_to_image: Tensor) -> Tensor:
        features = self.model.extract_feat(images, [{}])
        return self.model.pts_bbox_head.encode(features, lidar_to_image, tuple(images.shape[-2:]))

    def examples(
        self, batch: int, height: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Random images of cameras at the car's center that face all directions."""
        cameras = len(self.model.pts_bbox_head.transformer.cams_embeds)
        images = torch.randn(batch, cameras, 3, height, width, generator=generator)
        angles = torch.arange(cameras) * (2 * math.pi / cameras)
        sin, cos, zero = angles.sin(), angles.cos(), torch.zeros(cameras)
        # Rows are the camera's right, down and forward in x right, y ahead, z up.
        axes = torch.stack((cos, -sin, zero, zero, zero, zero - 1, sin, cos, zero), -1)
        intrinsics = torch.tensor(
            [[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]
        )
        projections = torch.eye(4).repeat(cameras, 1, 1)
        projections[:, :3, :3] = intrinsics @ axes.unflatten(-1, (3, 3))
        return images, projections.repeat(batch, 1, 1, 1)


def wrap_for_export(model: nn.Module, host: str) -> ExportWrapper:
    """Wraps a host's model for export; its deformable attention uses this package's operator.

    Raises:
        ValueError: Models of this host are not supported.
    """
    if host == "mmpretrain":
        return Classes(model)
    if host == "mmdet":
        from dcnv4_mm.integrations._mmdet import DINO

        swap_deformable_attention(model)
        return Boxes(model) if isinstance(model, DINO) else Maps(model)
    if host == "mmseg":
        swap_deformable_attention(model)
        return Masks(model) if hasattr(model.decode_head, "pixel_decoder") else Logits(model)
    if host == "mmdet3d" and hasattr(getattr(model, "pts_bbox_head", None), "encode"):
        return BirdsEyeView(model)
    raise ValueError(f"no export of a {type(model).__name__} of {host}")
