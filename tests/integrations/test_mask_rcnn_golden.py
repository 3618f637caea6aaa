"""Mask R-CNN with FlashInternImage-T against numbers recorded from the original project."""

import re

import pytest
import torch
from helpers import build_model, config_of, images, load_arrays, load_json, manifest, weights

from dcnv4_mm.checkpoints import load_released

pytestmark = pytest.mark.mmdet

ORIGINAL = "mask_rcnn_flash_intern_image_t_fpn_1x_coco"
RECORDED = load_json("mask_rcnn_t")


@pytest.fixture(scope="module")
def model():
    model, _ = build_model(ORIGINAL)
    load_released(model, {"state_dict": weights(manifest("mask_rcnn", ORIGINAL))})
    return model.eval()


@pytest.fixture(scope="module")
def outputs(model):
    """Every recorded part of the model, by its name in the recording."""
    rois = torch.tensor(RECORDED["rois"])
    with torch.inference_mode():
        maps = model.backbone(images(RECORDED["h"], RECORDED["w"], seed=RECORDED["image_seed"]))
        pyramid = model.neck(maps)
        scores, deltas = model.rpn_head(pyramid)
        boxes = model.roi_head._bbox_forward(pyramid, rois)
        masks = model.roi_head._mask_forward(pyramid, rois)
    named = {
        "roi_cls_score": boxes["cls_score"],
        "roi_bbox_pred": boxes["bbox_pred"],
        "roi_bbox_feats": boxes["bbox_feats"],
        "roi_mask_pred": masks["mask_preds"],
    }
    lists = {"backbone": maps, "neck": pyramid, "rpn_cls": scores, "rpn_reg": deltas}
    for name, tensors in lists.items():
        named.update({f"{name}{level}": tensor for level, tensor in enumerate(tensors)})
    return named


@pytest.mark.parametrize("key", load_arrays("mask_rcnn_t"))
def test_stored_tensor(outputs, key):
    name, step = re.fullmatch(r"img0/(\w+)(?:\[:,::(\d+)\])?", key).groups()
    result = outputs[name][:, :: int(step or 1)]
    expected = torch.from_numpy(load_arrays("mask_rcnn_t")[key])
    assert result.shape == expected.shape
    # Five times what float32 changed in the original.
    tolerance = 5 * RECORDED["float32_vs_float64_max_abs"][name]
    assert (result - expected).abs().max().item() <= tolerance


@pytest.mark.parametrize("name", RECORDED["stats"])
def test_samples_of_every_output(outputs, name):
    recorded, flat = RECORDED["stats"][name], outputs[name].flatten()
    assert list(outputs[name].shape) == recorded["shape"]
    count = len(recorded["samples"])
    picked = flat[torch.arange(count) * flat.numel() // count].double()
    expected = torch.tensor(recorded["samples"], dtype=torch.float64)
    tolerance = 5 * RECORDED["float32_vs_float64_max_abs"][name]
    assert (picked - expected).abs().max().item() <= tolerance


def test_host_loads_the_released_file(model, tmp_path):
    """The way of mmdet's inference and of its test script, which do not load strictly."""
    from mmdet.apis import init_detector

    path = tmp_path / "released.pth"
    torch.save({"meta": {}, "state_dict": weights(manifest("mask_rcnn", ORIGINAL))}, path)
    loaded = init_detector(str(config_of(ORIGINAL)), str(path), palette="coco", device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_features_reach_roi_align_contiguous(model, outputs):
    """mmcv's RoIAlign on the CPU is silently wrong on anything else."""
    assert all(outputs[f"neck{level}"].is_contiguous() for level in range(4))
