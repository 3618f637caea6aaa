"""Mask R-CNN and Cascade R-CNN from images to boxes and masks: the same as mmdet's own."""

import runpy

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT

pytest.importorskip("mmdet", reason="mmdet is not installed")

from integrations.host_models import small_config
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from dcnv4_mm.export.metadata import paste_masks
from dcnv4_mm.export.two_stage import why_not_instances
from dcnv4_mm.export.wrappers import Maps, wrap_for_export

pytestmark = pytest.mark.mmdet
CASCADE = "configs/cascade_mask_rcnn/cascade-mask-rcnn_flash-internimage-l_fpn_8xb2-1x_coco.py"


def cascade_config():
    """The small Mask R-CNN with the heads of the zoo's cascade."""
    config, full = small_config("mask_rcnn"), Config.fromfile(ROOT / CASCADE).model
    roi = full.roi_head
    channels = config.model.neck.out_channels
    extractors = [roi.bbox_roi_extractor, roi.mask_roi_extractor]
    for part in (*extractors, *roi.bbox_head, roi.mask_head):
        part["out_channels" if part in extractors else "in_channels"] = channels
        if "conv_out_channels" in part:
            part.conv_out_channels = channels
        if part.get("norm_cfg"):
            part.norm_cfg = {"type": "BN"}
    roi.mask_head.num_convs = 1
    config.model.update(type="CascadeRCNN", roi_head=roi, train_cfg=full.train_cfg)
    config.model.test_cfg.rcnn.max_per_img = 20
    return config


def build(config):
    """A model that finds boxes of clearly different scores."""
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("fc_cls.weight", "rpn_cls.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
        if name.endswith(("fc_reg.weight", "rpn_reg.weight")):
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture(scope="module", params=["mask_rcnn", "cascade"])
def model(request):
    config = cascade_config() if request.param == "cascade" else small_config("mask_rcnn")
    config.model.test_cfg.rpn.update(nms_pre=200, max_per_img=60)
    return build(config)


@torch.no_grad()
def test_boxes_and_masks_are_those_of_the_host(model):
    part = wrap_for_export(model, "mmdet").eval()
    noise = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    # Not a multiple of 32: the host pads, and clips boxes to the image without padding.
    images = F.interpolate(noise, (77, 101), mode="bicubic")
    found = part(images)

    meta = {"img_shape": (77, 101), "ori_shape": (77, 101), "scale_factor": (1.0, 1.0)}
    samples = [DetDataSample(metainfo=meta) for _ in images]
    padded = F.pad(images, (0, 27, 0, 19))
    for index, sample in enumerate(model.predict(padded, samples, rescale=False)):
        expected = sample.pred_instances
        count = int((found["scores"][index] > 0).sum())
        boxes, scores = found["boxes"][index], found["scores"][index]
        assert count == len(expected) > 5
        torch.testing.assert_close(boxes[:count], expected.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[:count], expected.scores, rtol=0, atol=1e-5)
        assert torch.equal(found["labels"][index][:count], expected.labels)
        assert not boxes[count:].any()
        masks = paste_masks(found["masks"][index][:count].numpy(), boxes[:count].numpy(), (77, 101))
        assert (torch.from_numpy(masks) == expected.masks).float().mean() > 0.999


def test_fewer_boxes_than_places_and_none_at_all():
    """Small images have fewer anchors than are selected; with a high threshold nothing is found."""
    config = small_config("mask_rcnn")
    config.model.test_cfg.rcnn.score_thr = 1.0
    part = wrap_for_export(build(config), "mmdet").eval()
    with torch.no_grad():
        found = part(torch.randn(1, 3, 40, 33))
    assert found["boxes"].shape == (1, 100, 4)
    assert not any(found[name].any() for name in ("boxes", "scores", "labels"))


def test_what_cannot_be_expressed_becomes_feature_maps():
    config = small_config("mask_rcnn")
    config.model.test_cfg.rcnn.nms = {"type": "soft_nms", "iou_threshold": 0.5}
    model = build(config)
    assert "soft_nms" in why_not_instances(model)
    assert type(wrap_for_export(model, "mmdet")) is Maps


def test_masks_lie_in_their_boxes():
    generator = np.random.default_rng(0)
    boxes = generator.uniform(-5, 40, (8, 4)).astype(np.float32)
    boxes = np.concatenate((boxes[:, :2], boxes[:, :2] + abs(boxes[:, 2:])), 1)
    boxes[0, 2] = boxes[0, 0]
    masks = cv2.GaussianBlur(generator.uniform(0, 1, (28, 28, 8)), (0, 0), 2).transpose(2, 0, 1)
    masks = np.ascontiguousarray(masks, np.float32)
    tensors = (torch.from_numpy(masks[1:, None]), torch.from_numpy(boxes[1:]))
    expected = _do_paste_mask(*tensors, 50, 60, skip_empty=False)[0] >= 0.5
    pasted = paste_masks(masks, boxes, (50, 60))
    assert not pasted[0].any()
    assert (pasted[1:] == expected.numpy()).mean() > 0.999


def test_the_tool_draws_masks_and_no_empty_entries():
    draw = runpy.run_path(str(ROOT / "tools" / "deployment" / "run_exported.py"))["draw"]
    image = np.full((100, 200, 3), 128, np.uint8)
    outputs = {
        "boxes": np.array([[[5, 50, 25, 90], [150, 50, 180, 90]]], np.float32),
        "scores": np.array([[0.9, 0.0]], np.float32),
        "labels": np.array([[1, 0]]),
        "masks": np.ones((1, 2, 28, 28), np.float32),
    }
    metadata = {"task": "detection", "classes": ["a", "b"], "resize": []}
    drawn, text = draw(image, outputs, metadata, 0.0)
    assert text == "1 objects"
    assert (drawn[55:85, 8:22] != image[55:85, 8:22]).any(-1).all()
    assert np.array_equal(drawn[:, 120:], image[:, 120:])
