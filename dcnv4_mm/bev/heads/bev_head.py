"""The BEV detection head."""

import math
from collections.abc import Sequence

import torch
from mmdet.models.layers import LearnedPositionalEncoding
from mmdet.models.losses import FocalLoss, smooth_l1_loss
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from dcnv4_mm.bev.layers.proposals import ProposalQueries
from dcnv4_mm.bev.layers.transformer import BEVTransformer
from dcnv4_mm.bev.task_modules.assigner import HungarianAssigner
from dcnv4_mm.bev.task_modules.box_coder import BoxCoder

__all__ = ["BEVFormerV2Head"]

_CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
_POST_CENTER_RANGE = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


class BEVFormerV2Head(BaseModule):
    """Encodes each frame's feature maps into BEV features, fuses them, and decodes boxes.

    In training there are several groups of queries, each matched with the objects by itself (Group
    DETR); inference uses the first group alone.

    Args:
        num_classes: Number of classes.
        point_cloud_range: x, y, z of the lower corner, then of the upper one, in metres.
        bev_shape: (H, W) cells of the BEV grid.
        embed_dims: Number of channels.
        num_queries: Queries per group.
        num_groups: Groups of queries.
        num_proposal_queries: Further queries per group, whose reference points are the
            perspective head's proposals; 0, as released, for none.
        encoder: Arguments of :class:`BEVEncoder`, without shape and range.
        decoder: Arguments of :class:`ObjectDecoder`.
        fusion: Arguments of :class:`TemporalFusion`; ``None`` for one frame.
        num_cameras: Number of cameras.
        num_levels: Number of feature levels used, from the finest on.
        coder: Arguments of :class:`BoxCoder`, without the range.
        assigner: Arguments of :class:`HungarianAssigner`.
        cls_loss_weight: Weight of the focal loss of the classes.
        box_loss_weight: Weight of the smooth L1 loss of the codes.
        code_weights: Weight of each of the ten elements of a box code in that loss.
        init_cfg: As in mmengine.

    Raises:
        ValueError: ``code_weights`` has not ten elements.

    Source:
        Yang et al., "BEVFormer v2", CVPR 2023.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        point_cloud_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        bev_shape: tuple[int, int] = (200, 200),
        embed_dims: int = 256,
        num_queries: int = 900,
        num_groups: int = 11,
        num_proposal_queries: int = 0,
        encoder: dict | None = None,
        decoder: dict | None = None,
        fusion: dict | None = None,
        num_cameras: int = 6,
        num_levels: int = 4,
        coder: dict | None = None,
        assigner: dict | None = None,
        cls_loss_weight: float = 2.0,
        box_loss_weight: float = 0.75,
        code_weights: Sequence[float] = _CODE_WEIGHTS,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.bev_shape = tuple(bev_shape)
        self.num_classes, self.num_levels = num_classes, num_levels
        self.num_queries, self.num_groups = num_queries, num_groups
        self.num_proposal_queries = num_proposal_queries
        coder = {"post_center_range": _POST_CENTER_RANGE, **(coder or {})}
        self.coder = BoxCoder(point_cloud_range=point_cloud_range, **coder)
        self.assigner = HungarianAssigner(**(assigner or {}))
        self.loss_cls = FocalLoss(gamma=2.0, alpha=0.25, loss_weight=cls_loss_weight)
        self.box_loss_weight = box_loss_weight

        # In the order of the released state dicts.
        self.code_weights = nn.Parameter(_read_code_weights(code_weights), requires_grad=False)
        self.positional_encoding = LearnedPositionalEncoding(
            embed_dims // 2, *self.bev_shape, init_cfg=None
        )
        grid = dict(bev_shape=self.bev_shape, point_cloud_range=point_cloud_range)
        self.transformer = BEVTransformer(
            encoder=dict(**grid, **(encoder or {})),
            decoder=decoder or {},
            fusion=fusion,
            embed_dims=embed_dims,
            num_cameras=num_cameras,
            num_levels=num_levels,
        )
        layers = len(self.transformer.decoder.layers)
        self.cls_branches = nn.ModuleList(
            _cls_branch(embed_dims, num_classes) for _ in range(layers)
        )
        self.reg_branches = nn.ModuleList(_reg_branch(embed_dims) for _ in range(layers))
        self.bev_embedding = nn.Embedding(math.prod(self.bev_shape), embed_dims)
        self.query_embedding = nn.Embedding(num_queries * num_groups, 2 * embed_dims)
        self.proposal_queries = None
        if num_proposal_queries:
            self.proposal_queries = ProposalQueries(
                embed_dims, num_proposals=num_proposal_queries, num_groups=num_groups
            )

    def init_weights(self) -> None:
        """As released: Xavier in the transformer, a prior probability of 1 % in the classifiers."""
        super().init_weights()
        self.transformer.reset_parameters()
        if self.proposal_queries is not None:
            self.proposal_queries.reset_parameters()
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, -math.log(99))

    def encode(
        self, features: Sequence[Tensor], lidar_to_image: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """Encodes the BEV features of one frame.

        Args:
            features: The cameras' feature maps by level, the finest first, (batch, num_cameras,
                channels, h, w).
            lidar_to_image: (batch, num_cameras, 4, 4), from the BEV's LiDAR frame to pixels.
            image_size: Padded (H, W) of the images.

        Returns:
            (batch, num_queries, embed_dims).
        """
        encoding = self.positional_encoding
        return self.transformer.encode(
            features[: self.num_levels],
            lidar_to_image,
            image_size,
            bev_queries=self.bev_embedding.weight,
            bev_pos=(encoding.col_embed.weight, encoding.row_embed.weight),
        )

    def forward(
        self, bevs: Tensor, valid: Tensor, current: int, proposals: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predicts boxes from the BEV features of all frames.

        Args:
            bevs: (batch, num_frames, num_queries, embed_dims), in the order of time.
            valid: (B, T), which frames exist.
            current: Index of the current frame.
            proposals: (B, K, 3), centers of the perspective head's boxes as fractions of the
                range, NaN for none; for a head with proposal queries.

        Returns:
            Class logits (layers, B, G * Q, classes) and codes in metres (layers, B, G * Q, 10),
            float32; G is 1 in evaluation. With proposals, a group has Q + K instead of Q.
        """
        bev_embed = self.transformer.fuse(bevs, valid, current)
        groups = self.num_groups if self.training else 1
        queries, reference_points = self.query_embedding.weight[: groups * self.num_queries], None
        if self.proposal_queries is not None:
            queries, reference_points = self._hybrid(queries, proposals, groups)
        states, codes = self.transformer.decode(
            bev_embed,
            queries,
            num_groups=groups,
            reg_branches=self.reg_branches,
            reference_points=reference_points,
        )
        logits = [branch(state) for branch, state in zip(self.cls_branches, states, strict=True)]
        return torch.stack(logits).float(), self.coder.to_metres(codes)

    def _hybrid(self, learned: Tensor, proposals: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        """Learned and proposal queries, group after group, with their reference points."""
        batch = len(proposals)
        learned = learned.unflatten(0, (num_groups, -1)).expand(batch, -1, -1, -1)
        queries = torch.cat((learned, self.proposal_queries(proposals, num_groups)), dim=2)
        unknown = proposals.new_full((batch, self.num_queries, 3), torch.nan)
        reference_points = torch.cat((unknown, proposals), dim=1)
        return queries.flatten(1, 2), reference_points.repeat(1, num_groups, 1)

    def loss_by_feat(
        self, logits: Tensor, codes: Tensor, gt_instances_3d: Sequence[InstanceData]
    ) -> dict[str, Tensor]:
        """The losses of every decoder layer.

        Args:
            logits: As :meth:`forward` returns in training.
            codes: Likewise.
            gt_instances_3d: ``bboxes_3d``, LiDAR boxes with velocity, and ``labels_3d`` of each
                sample.

        Returns:
            ``loss_cls`` and ``loss_bbox`` of the last layer, ``d0.loss_cls`` and so on.
        """
        # [layers, B, G * Q] and [layers, B, G * Q, 10]
        labels = logits.new_full(logits.shape[:-1], self.num_classes, dtype=torch.int64)
        targets, matched = torch.zeros_like(codes), torch.zeros_like(labels, dtype=torch.bool)
        num_objects = 0
        for sample, instances in enumerate(gt_instances_3d):
            boxes, classes = instances.bboxes_3d, instances.labels_3d
            num_objects += min(len(classes), logits.shape[2] // self.num_groups)
            if len(classes) == 0:
                continue
            gt = self.coder.encode(torch.cat((boxes.gravity_center, boxes.tensor[:, 3:]), dim=-1))
            assigned = self._assign(logits[:, sample], codes[:, sample], classes, gt)
            found, index = assigned >= 0, assigned.clamp(min=0)
            matched[:, sample] = found
            labels[:, sample] = torch.where(found, classes[index], self.num_classes)
            targets[:, sample] = torch.where(found.unsqueeze(-1), gt.to(codes)[index], 0.0)
        # The number of objects of one group; the groups' losses are averaged. Everything below is
        # masked instead of indexed, and no value is read on the CPU, which would wait for the GPU.
        positives = reduce_mean(logits.new_full((), float(num_objects))).clamp(min=1)
        normalizer = positives * self.num_groups
        matched = (matched & targets.isfinite().all(-1)).unsqueeze(-1)
        predicted, targets = torch.where(matched, codes, 0.0), torch.where(matched, targets, 0.0)
        losses = {}
        for layer in range(len(logits)):
            cls = self.loss_cls(
                logits[layer].flatten(0, 1), labels[layer].flatten(), avg_factor=normalizer
            )
            # The function: mmdet's module asks the device whether any weight is positive.
            box = smooth_l1_loss(
                predicted[layer],
                targets[layer],
                self.code_weights.expand_as(predicted[layer]),
                avg_factor=normalizer,
            )
            name = "" if layer == len(logits) - 1 else f"d{layer}."
            losses[f"{name}loss_cls"] = torch.nan_to_num(cls)
            losses[f"{name}loss_bbox"] = self.box_loss_weight * torch.nan_to_num(box)
        return losses

    def _assign(self, logits: Tensor, codes: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Matches each layer's groups of one sample; (layers, G * Q)."""
        groups = (self.num_groups, -1)
        assigned = self.assigner.assign(
            logits.detach().unflatten(1, groups),
            codes.detach().unflatten(1, groups),
            labels,
            targets,
        )
        return assigned.flatten(1)

    def predict_by_feat(
        self, logits: Tensor, codes: Tensor, metas: Sequence[dict]
    ) -> list[InstanceData]:
        """Boxes of the last layer.

        Args:
            logits: As :meth:`forward` returns in evaluation.
            codes: Likewise.
            metas: Metainfo of each sample, with the class of its boxes as ``box_type_3d``.

        Returns:
            ``bboxes_3d``, ``scores_3d`` and ``labels_3d`` of each sample, in descending order of
            score.
        """
        results = []
        for *parts, kept, meta in zip(*self.coder.topk(logits[-1], codes[-1]), metas, strict=True):
            # The only wait for the device: how many boxes lie in the range.
            index = kept.nonzero()[:, 0]
            boxes, scores, labels = (part[index] for part in parts)
            # From the gravity centre to that of the bottom, by which mmdet3d's boxes are given.
            bottom = boxes[:, 2:3] - boxes[:, 5:6] / 2
            boxes = torch.cat((boxes[:, :2], bottom, boxes[:, 3:]), dim=-1)
            boxes_3d = meta["box_type_3d"](boxes, box_dim=boxes.shape[-1])
            results.append(InstanceData(bboxes_3d=boxes_3d, scores_3d=scores, labels_3d=labels))
        return results


def _cls_branch(channels: int, num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(channels, num_classes))


def _reg_branch(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(channels, len(_CODE_WEIGHTS)))


def _read_code_weights(code_weights: Sequence[float]) -> Tensor:
    if len(code_weights) != len(_CODE_WEIGHTS):
        raise ValueError(
            f"code_weights: expected {len(_CODE_WEIGHTS)} elements, one per element of a box code, "
            f"got {len(code_weights)}"
        )
    return torch.tensor(code_weights, dtype=torch.float32)
