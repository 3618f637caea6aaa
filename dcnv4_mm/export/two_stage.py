"""Mask R-CNN and Cascade R-CNN from images to boxes and masks, as functions of tensors.

mmdet's own post-processing selects boxes into tensors whose sizes depend on the data. Here every
selection has a fixed size, and a score of 0 marks the entries without a box; only the suppression
of overlapping boxes returns a number of indices that is unknown before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from dcnv4_mm.export.wrappers import ExportWrapper

__all__ = ["Instances", "why_not_instances"]


def why_not_instances(model: nn.Module) -> str | None:
    """Why the heads of a detector cannot be exported by :class:`Instances`, or ``None``."""
    from mmdet.models import RPNHead, SingleRoIExtractor, StandardRoIHead, TwoStageDetector

    if not (isinstance(model, TwoStageDetector) and model.with_rpn):
        return "it is not a two-stage detector with an RPN"
    rpn, roi = model.rpn_head, model.roi_head
    if type(rpn) is not RPNHead or not rpn.use_sigmoid_cls:
        return f"{type(rpn).__name__} is not mmdet's RPNHead with a sigmoid"
    if not isinstance(roi, StandardRoIHead) and type(roi).__name__ != "CascadeRoIHead":
        return f"{type(roi).__name__} is neither StandardRoIHead nor CascadeRoIHead"
    extractors = _stages(roi.bbox_roi_extractor)
    extractors += _stages(roi.mask_roi_extractor) if roi.with_mask else []
    for extractor in extractors:
        if type(extractor) is not SingleRoIExtractor:
            return f"{type(extractor).__name__} is not mmdet's SingleRoIExtractor"
    for head in _stages(roi.bbox_head):
        if head.custom_cls_channels or not head.with_reg:
            return f"{type(head).__name__} has scores of its own or no boxes"
    settings = {"rpn": rpn.test_cfg, "rcnn": roi.test_cfg}
    for name, found in settings.items():
        suppression = found.nms
        if suppression.get("type", "nms") != "nms" or suppression.get("class_agnostic"):
            return f"test_cfg.{name}.nms is {dict(suppression)}"
    if rpn.test_cfg.get("nms_pre", -1) <= 0 or roi.test_cfg.max_per_img <= 0:
        return "test_cfg.rpn.nms_pre and test_cfg.rcnn.max_per_img must be positive"
    return None


class Instances(ExportWrapper):
    """Detections of Mask R-CNN or Cascade R-CNN, the best first.

    Images need no padding: the model pads them as its data preprocessor does. Outputs are boxes
    (N, K, 4: x1, y1, x2, y2 in pixels of the input), scores (N, K) and labels (N, K), with K the
    ``max_per_img`` of the test settings, and with a mask head the masks (N, K, m, m):
    probabilities on a grid over each box. The score is 0 where there is no box.
    """

    task = "detection"
    # Boxes of nearly equal scores are exchanged, and suppress others.
    ranked = True
    pads = True

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        roi, size = self.model.roi_head, (image.shape[2], image.shape[3])
        divisor = self.model.data_preprocessor.pad_size_divisor
        rest = [(length + divisor - 1) // divisor * divisor - length for length in size]
        maps = self.model.extract_feat(F.pad(image, (0, rest[1], 0, rest[0])))
        boxes, valid = self._proposals(maps, size)
        boxes, scores = self._refine(maps, boxes, size)
        outputs = self._select(boxes, scores * valid.unsqueeze(-1), size)
        if roi.with_mask:
            outputs["masks"] = self._masks(maps, outputs["boxes"], outputs["labels"])
        return outputs

    def _proposals(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The boxes of the RPN (N, P, 4), and whether each exists (N, P)."""
        head = self.model.rpn_head
        settings, count = head.test_cfg, head.test_cfg.nms_pre
        classes, deltas = head(maps)
        sizes = [tuple(x.shape[2:]) for x in classes]
        priors = head.prior_generator.grid_priors(sizes, device=maps[0].device)
        boxes, scores = [], []
        for x, d, anchors in zip(classes, deltas, priors, strict=True):
            # A small map has fewer anchors than are selected.
            logits = x.permute(0, 2, 3, 1).flatten(1).sigmoid()
            best, index = F.pad(logits, (0, count), value=-1.0).topk(count)
            index = index.clamp(max=anchors.shape[0] - 1)
            d = d.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
            d = d.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
            decoded = head.bbox_coder.decode(
                anchors[index].flatten(0, 1), d.flatten(0, 1), max_shape=size
            ).unflatten(0, (-1, count))
            boxes.append(decoded)
            scores.append(best)
        found, score = torch.cat(boxes, 1), torch.cat(scores, 1)
        smallest = settings.get("min_bbox_size", -1)
        if smallest >= 0:
            extent = (found[..., 2:] - found[..., :2]).amin(-1)
            # Behind all others, where they suppress none.
            score = torch.where(extent > smallest, score, -1.0)
        level = torch.arange(len(maps), device=score.device).repeat_interleave(count)
        image = torch.arange(score.shape[0], device=score.device).unsqueeze(-1)
        groups = (level.expand_as(score).flatten(), image.expand_as(score).flatten())
        kept = _suppress(
            found.flatten(0, 1), score.flatten(), groups, size, settings.nms.iou_threshold
        )
        survivors = torch.full_like(score.flatten(), -1.0).scatter(0, kept, score.flatten()[kept])
        limit = min(settings.max_per_img, score.shape[1])
        best, index = survivors.view_as(score).topk(limit)
        return found.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)), best >= 0

    def _refine(
        self, maps: tuple[Tensor, ...], boxes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Boxes (N, P, classes or 1, 4) and scores (N, P, classes) of the box heads."""
        roi, logits = self.model.roi_head, []
        heads, extractors = _stages(roi.bbox_head), _stages(roi.bbox_roi_extractor)
        count = boxes.shape[1]
        for stage, (head, extractor) in enumerate(zip(heads, extractors, strict=True)):
            found, deltas = head(_pool(extractor, maps, boxes))
            logits.append(found)
            if stage < len(heads) - 1:
                label = found[:, :-1].argmax(1)
                meta = {"img_shape": size}
                boxes = head.regress_by_class(boxes.flatten(0, 1), label, deltas, meta)
                boxes = boxes.unflatten(0, (-1, count))
        scores = (sum(logits) / len(logits)).softmax(-1)[:, :-1]
        decoded = head.bbox_coder.decode(boxes.flatten(0, 1), deltas, max_shape=size)
        decoded = decoded.unflatten(0, (-1, count)).unflatten(-1, (-1, 4))
        return decoded, scores.unflatten(0, (-1, count))

    def _select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The best boxes of each class that no better one overlaps."""
        settings, classes = self.model.roi_head.test_cfg, scores.shape[2]
        boxes = boxes.expand(-1, -1, classes, -1).flatten(1, 2)
        scores, pairs = scores.flatten(1), scores.shape[1] * classes
        flat = scores.flatten()
        index = (flat > settings.score_thr).nonzero().squeeze(1)
        groups = (index % classes, index // pairs)
        overlap = settings.nms.iou_threshold
        kept = index[_suppress(boxes.flatten(0, 1)[index], flat[index], groups, size, overlap)]
        survivors = torch.zeros_like(flat).scatter(0, kept, flat[kept]).view_as(scores)
        best, index = survivors.topk(min(settings.max_per_img, pairs))
        boxes = boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        boxes = boxes * (best > 0).unsqueeze(-1)
        return {"boxes": boxes, "scores": best, "labels": index % classes * (best > 0)}

    def _masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities of each box for its class, averaged over the stages of a cascade."""
        roi, found = self.model.roi_head, []
        shared = roi.share_roi_extractor
        extractors = _stages(roi.bbox_roi_extractor if shared else roi.mask_roi_extractor)
        for head, extractor in zip(_stages(roi.mask_head), extractors, strict=True):
            masks = head(_pool(extractor, maps, boxes)).sigmoid()
            if head.class_agnostic:
                found.append(masks[:, 0])
            else:
                index = labels.reshape(-1, 1, 1, 1).expand(-1, -1, *masks.shape[2:])
                found.append(masks.gather(1, index)[:, 0])
        return (sum(found) / len(found)).unflatten(0, (-1, boxes.shape[1]))


def _stages(part: nn.Module) -> list[nn.Module]:
    """The modules of a cascade's stages, or the one of a single stage."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: tuple[Tensor, Tensor],
    size: tuple[int, int],
    overlap: float,
) -> Tensor:
    """Indices of boxes (B, 4) that remain after suppression among those of the same two groups."""
    # Boxes of different groups do not overlap: those of each are moved by an offset of its own.
    moves = [group * (length + 1) for group, length in zip(groups, (size[1], size[0]), strict=True)]
    return nms(boxes + torch.stack(moves * 2, -1), scores, overlap)


def _pool(extractor: nn.Module, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """RoIAlign (N * P, C, h, w) of boxes (N, P, 4), each from the map of its level."""
    maps = maps[: extractor.num_inputs]
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    image = image.view(-1, 1, 1).expand(-1, boxes.shape[1], 1)
    rois = torch.cat((image, boxes), -1).flatten(0, 1)
    levels = extractor.map_roi_levels(rois, len(maps))
    pooled = torch.zeros((), device=boxes.device)
    for level, (layer, x) in enumerate(zip(extractor.roi_layers, maps, strict=True)):
        # An empty box has no samples, so that the maps of the other levels cost nothing.
        own = torch.cat((rois[:, :1], rois[:, 1:] * (levels == level).unsqueeze(-1)), -1)
        part = roi_align(
            x, own, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        pooled = torch.where((levels == level).view(-1, 1, 1, 1), part, pooled)
    return pooled
