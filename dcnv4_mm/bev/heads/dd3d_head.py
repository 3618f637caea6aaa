"""The perspective head (DD3D): boxes from single images, which supervise the backbone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmdet.models.losses import FocalLoss
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from dcnv4_mm.bev.geometry import (
    allocentric_to_egocentric,
    quaternion_to_matrix,
    unproject,
)
from dcnv4_mm.bev.layers.fcos import STRIDES, FCOS2DHead, FCOS3DHead, predictor
from dcnv4_mm.bev.losses.perspective import centerness_target, corner_loss, ltrb_giou_loss
from dcnv4_mm.bev.task_modules.camera_boxes import NO_ATTRIBUTE, CameraBoxes, join_objects
from dcnv4_mm.bev.task_modules.point_targets import assign_points, pyramid_points
from dcnv4_mm.bev.task_modules.suppression import class_wise_nms

__all__ = ["CANONICAL_WLH", "DD3DHead"]

# Width, length, height in metres, of the classes in alphabetical order.
CANONICAL_WLH = {
    "barrier": (2.3524184, 0.5062202, 1.0413622),
    "bicycle": (0.61416006, 1.7016163, 1.3054738),
    "bus": (2.9139307, 10.725025, 3.2832346),
    "car": (1.9751819, 4.641267, 1.74352),
    "construction_vehicle": (2.772134, 6.565072, 3.2474296),
    "motorcycle": (0.7800532, 2.138673, 1.4437162),
    "pedestrian": (0.6667362, 0.7181772, 1.7616143),
    "traffic_cone": (0.40246472, 0.4027083, 1.0084083),
    "trailer": (3.0059454, 12.8197, 4.1213827),
    "truck": (2.4986045, 6.9310856, 2.8382742),
}
# Reach of a box from a location, in pixels, that each level is meant for.
_SIZES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, 1e8))
_FOCAL_LENGTH = 500.0
_DEPTH_RANGE = (0.1, 80.0)
# Inference: minimum class score, locations per level, maximum overlap, boxes per image.
_MIN_SCORE, _MAX_PER_LEVEL, _NMS_2D, _MAX_PER_IMAGE = 0.05, 1000, 0.75, 100


@dataclass(frozen=True)
class _Positives:
    """Targets of the P positive locations of all images."""

    indices: Tensor
    labels: Tensor
    points: Tensor
    ltrb: Tensor
    attributes: Tensor
    speeds: Tensor
    boxes: CameraBoxes
    inverse_intrinsics: Tensor


class DD3DHead(BaseModule):
    """Finds boxes in single images, in pixels and in the camera frame.

    Args:
        num_classes: Number of classes.
        in_channels: Number of channels of the five levels.
        canonical_wlh: Width, length and height of each class's typical box, in metres; by default
            those of nuScenes' ten classes in alphabetical order.
        norm_cfg: Norm of the towers.
        init_cfg: As in mmengine.

    Raises:
        ValueError: There is not one canonical size for each class.

    Source:
        Park et al., "Is Pseudo-Lidar needed for Monocular 3D Object detection?", ICCV 2021, as
        BEVFormer v2 uses it. Two oddities are kept for the sake of released numbers: see
        :func:`corner_loss`, and the limit on it that the configs name but that has no effect.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 256,
        canonical_wlh: Sequence[Sequence[float]] | None = None,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        canonical_wlh = canonical_wlh or list(CANONICAL_WLH.values())
        if len(canonical_wlh) != num_classes:
            raise ValueError(
                f"canonical_wlh must hold a size for each of {num_classes} classes, got "
                f"{len(canonical_wlh)}"
            )
        norm_cfg = norm_cfg or dict(type="SyncBN")
        self.num_classes = num_classes
        self.register_buffer("canonical_wlh", torch.tensor(canonical_wlh), persistent=False)
        self.loss_cls = FocalLoss(gamma=2.0, alpha=0.25)
        self.fcos2d_head = FCOS2DHead(in_channels, num_classes, norm_cfg)
        self.fcos3d_head = FCOS3DHead(in_channels, num_classes, norm_cfg)
        self.attr_logits = predictor(in_channels, 3)
        self.speed = predictor(in_channels, 1)

    def forward(self, features: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Predicts at every location.

        Args:
            features: Five levels, the finest first, (M, C, h, w) for M images.

        Returns:
            Lists of five tensors (M, channels, h, w): ``logits``, ``box2d_reg`` in pixels,
            ``centerness``, ``attr``, ``speed`` in m/s, and for each class ``quat``, ``proj_ctr``,
            ``depth``, ``size`` and ``conf``.
        """
        outputs: dict[str, list[Tensor]] = {}
        for level, x in enumerate(features):
            flat, cls = self.fcos2d_head(x, level)
            flat.update(self.fcos3d_head(x, level))
            flat.update(attr=self.attr_logits(cls), speed=self.speed(cls).relu())
            for name, output in flat.items():
                outputs.setdefault(name, []).append(output)
        return outputs

    def loss(
        self, features: Sequence[Tensor], gt_instances: Sequence[InstanceData]
    ) -> dict[str, Tensor]:
        """Predicts, and compares with the objects of each image.

        Args:
            features: As in :meth:`forward`.
            gt_instances: Objects of each image: ``bboxes`` (n, 4) in pixels, ``labels``,
                ``quaternions`` (n, 4), ``centers`` (n, 3), ``wlh`` (n, 3) in the camera frame,
                ``attributes``, 3 for unknown, ``speeds``, NaN for unknown, and the metainfo
                ``intrinsics`` (3, 3).

        Returns:
            Ten losses by name.
        """
        return self.loss_by_feat(self(features), gt_instances)

    def targets(
        self, shapes: Sequence[tuple[int, int]], gt_instances: Sequence[InstanceData]
    ) -> tuple[Tensor, _Positives]:
        """Labels of all locations, and the targets of the positive ones.

        Locations are in the order level, image, cell.

        Args:
            shapes: (H, W) of the levels.
            gt_instances: As in :meth:`loss`.

        Returns:
            (locations,), the number of classes for background, and the positives.
        """
        device = gt_instances[0].bboxes.device
        counts = [height * width for height, width in shapes]
        points = pyramid_points(shapes, STRIDES, device)
        # Filled on the device, per level: copies from the CPU would be waited for.
        strides, smallest, largest = (
            torch.cat([points.new_full((n,), x) for n, x in zip(counts, values, strict=True)])
            for values in (STRIDES, *zip(*_SIZES, strict=True))
        )
        sizes = torch.stack((smallest, largest), dim=-1)
        found = [
            assign_points(points, strides, sizes, instances.bboxes) for instances in gt_instances
        ]
        # Objects of all images in one list; [images, M], -1 for none.
        starts = [0]
        for instances in gt_instances[:-1]:
            starts.append(starts[-1] + len(instances))
        chosen = torch.stack(
            [
                torch.where(index >= 0, index + start, -1)
                for start, (index, _) in zip(starts, found, strict=True)
            ]
        )
        ltrb = torch.stack([distances for _, distances in found])

        def level_major(x: Tensor) -> Tensor:
            return torch.cat([part.flatten(0, 1) for part in x.split(counts, dim=1)])

        chosen, ltrb = level_major(chosen), level_major(ltrb)
        at = level_major(points.expand(len(gt_instances), -1, -1))
        positive = (chosen >= 0).nonzero()[:, 0]
        owner = chosen[positive]
        objects = join_objects(gt_instances)
        labels = chosen.new_full(chosen.shape, self.num_classes)
        labels[positive] = objects["labels"][owner]
        boxes = CameraBoxes(
            *(objects[name][owner] for name in ("rotation", "proj_ctr", "depth", "wlh"))
        )
        return labels, _Positives(
            positive,
            labels[positive],
            at[positive],
            ltrb[positive],
            objects["attributes"][owner],
            objects["speeds"][owner],
            boxes,
            objects["inverse_intrinsics"][owner],
        )

    def loss_by_feat(
        self, outputs: dict[str, list[Tensor]], gt_instances: Sequence[InstanceData]
    ) -> dict[str, Tensor]:
        """Compares predictions with the objects of each image; see :meth:`loss`."""
        shapes = [(level.shape[-2], level.shape[-1]) for level in outputs["logits"]]
        labels, positives = self.targets(shapes, gt_instances)
        flat = {
            # [locations, channels] in the order level, image, cell
            name: torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in levels]).float()
            for name, levels in outputs.items()
        }
        at = {name: x[positives.indices] for name, x in flat.items()}
        # Unknown attributes and speeds are masked, not indexed: no value is read on the CPU.
        weight = centerness_target(positives.ltrb)
        has_attribute = positives.attributes != NO_ATTRIBUTE
        has_speed = ~positives.speeds.isnan()
        own = torch.stack(
            [
                weight.new_full((), float(len(weight))),
                weight.sum(),
                (weight * has_attribute).sum(),
                (weight * has_speed).sum(),
            ]
        )
        count, total, attribute_total, speed_total = reduce_mean(own)
        count, total = count.clamp(min=1), total.clamp(min=1e-6)
        losses = {"loss_cls": self.loss_cls(flat["logits"], labels, avg_factor=count)}
        if len(weight) == 0:
            # Every predictor stays part of the graph, as other ranks may need its gradient.
            nothing = sum(x.sum() for x in flat.values()) * 0
            return losses | {f"loss_{name}": nothing for name in _POSITIVE_LOSSES}

        losses["loss_box2d_reg"] = (
            weight * ltrb_giou_loss(at["box2d_reg"], positives.ltrb)
        ).sum() / total
        losses["loss_centerness"] = (
            F.binary_cross_entropy_with_logits(at["centerness"][:, 0], weight, reduction="sum")
            / count
        )
        losses.update(self._loss_3d(at, positives, weight, total))
        # Zero, but connected, where no object's attribute or speed is known.
        attribute = F.cross_entropy(
            at["attr"], positives.attributes, ignore_index=NO_ATTRIBUTE, reduction="sum"
        ) / has_attribute.sum().clamp(min=1)
        losses["loss_attr"] = 0.2 * attribute * own[2] / attribute_total.clamp(min=1e-6)
        speed = F.smooth_l1_loss(
            at["speed"][:, 0], positives.speeds.nan_to_num(), beta=0.05, reduction="none"
        )
        speed = (weight * has_speed * speed).sum()
        losses["loss_speed"] = 0.2 * speed / speed_total.clamp(min=1e-6)
        return losses

    @torch.no_grad()
    def predict_by_feat(
        self, outputs: dict[str, list[Tensor]], intrinsics: Tensor
    ) -> list[InstanceData]:
        """Boxes of each image, after non-maximum suppression in the image.

        Args:
            outputs: As :meth:`forward` returns.
            intrinsics: (M, 3, 3).

        Returns:
            Of each image, the best first: ``bboxes`` in pixels, ``labels``, ``scores``, and in
            the camera frame ``centers``, ``rotations`` (n, 3, 3) and ``wlh``.
        """
        inverse_intrinsics = torch.linalg.inv_ex(intrinsics.float())[0]
        results = []
        for img, inverse in enumerate(inverse_intrinsics):
            levels = [
                self._candidates({name: x[level][img] for name, x in outputs.items()}, stride)
                for level, stride in enumerate(STRIDES)
            ]
            found = {name: torch.cat([level[name] for level in levels]) for name in levels[0]}
            boxes = torch.cat((found["points"], found["points"]), dim=-1)
            boxes += found["box2d_reg"] * boxes.new_tensor([-1, -1, 1, 1])
            kept = class_wise_nms(boxes, found["scores"], found["labels"], _NMS_2D)
            kept = kept[:_MAX_PER_IMAGE]
            chosen = {name: x[kept] for name, x in found.items()}
            rays = inverse.expand(len(kept), -1, -1)
            parts = self._decode(chosen, chosen["labels"], chosen["points"], rays)
            results.append(
                InstanceData(
                    bboxes=boxes[kept],
                    labels=chosen["labels"],
                    scores=chosen["scores"],
                    centers=unproject(parts.proj_ctr, rays) * parts.depth,
                    rotations=parts.quat,
                    wlh=parts.size,
                )
            )
        return results

    def _candidates(self, outputs: dict[str, Tensor], stride: int) -> dict[str, Tensor]:
        """The best locations and classes of one level of an image, by name (n, ...)."""
        shape = (outputs["logits"].shape[-2], outputs["logits"].shape[-1])
        flat = {name: x.flatten(1).transpose(0, 1).float() for name, x in outputs.items()}
        scores = flat["logits"].sigmoid() * flat["centerness"].sigmoid()
        scores, index = scores.flatten().topk(min(_MAX_PER_LEVEL, scores.numel()))
        index = index[scores > _MIN_SCORE]
        at, labels = index // self.num_classes, index % self.num_classes
        parts = {name: self._of_class(flat[name][at], labels) for name in _PARTS}
        confidence = parts["conf"][:, 0].sigmoid()
        return parts | {
            "points": pyramid_points([shape], [stride], at.device)[at],
            "box2d_reg": flat["box2d_reg"][at],
            "labels": labels,
            "scores": scores[: len(index)].sqrt() * confidence,
        }

    def _loss_3d(
        self, at: dict[str, Tensor], positives: _Positives, weight: Tensor, total: Tensor
    ) -> dict[str, Tensor]:
        """The disentangled loss: the object's own box with one part predicted at a time."""
        chosen = {name: self._of_class(at[name], positives.labels) for name in _PARTS}
        predicted = self._decode(
            chosen, positives.labels, positives.points, positives.inverse_intrinsics
        )
        expected = positives.boxes.corners(positives.inverse_intrinsics)
        losses = {}
        for name, part in vars(predicted).items():
            corners = positives.boxes.corners(positives.inverse_intrinsics, **{name: part})
            loss = (weight * corner_loss(corners, expected)).sum() / total
            losses[f"loss_box3d_{name}"] = 2.0 * loss
        with torch.no_grad():
            corners = predicted.corners(positives.inverse_intrinsics)
            wanted = (-(corners - expected).abs().flatten(1).mean(1)).exp()
        confidence = F.binary_cross_entropy_with_logits(
            chosen["conf"][:, 0], wanted, reduction="none"
        )
        losses["loss_conf3d"] = (weight * confidence).sum() / total
        return losses

    def _of_class(self, x: Tensor, labels: Tensor) -> Tensor:
        """The channels of each location's class, (P, parts)."""
        rows = torch.arange(len(x), device=x.device)
        return x.unflatten(-1, (-1, self.num_classes))[rows, :, labels]

    def _decode(
        self,
        parts: dict[str, Tensor],
        labels: Tensor,
        points: Tensor,
        inverse_intrinsics: Tensor,
    ) -> CameraBoxes:
        """Boxes in the camera frame from the predictions of one class at each location."""
        proj_ctr = points + parts["proj_ctr"]
        ray = unproject(proj_ctr, inverse_intrinsics)
        quaternion = F.normalize(parts["quat"], dim=-1, eps=1e-7)
        # Pixels are smaller the longer the lens: depth in units of a camera of fixed length.
        pixel = inverse_intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2].norm(dim=-1, keepdim=True)
        depth = parts["depth"] / (_FOCAL_LENGTH * pixel)
        return CameraBoxes(
            allocentric_to_egocentric(quaternion_to_matrix(quaternion), ray),
            proj_ctr,
            depth.clamp(*_DEPTH_RANGE),
            (parts["size"].tanh() + 1) * self.canonical_wlh[labels],
        )


_PARTS = ("quat", "proj_ctr", "depth", "size", "conf")
_POSITIVE_LOSSES = (
    "box2d_reg",
    "centerness",
    "box3d_quat",
    "box3d_proj_ctr",
    "box3d_depth",
    "box3d_size",
    "conf3d",
    "attr",
    "speed",
)
