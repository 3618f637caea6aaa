"""The perspective head against tensors recorded from the original classes."""

import numpy as np
import pytest
import torch
from helpers import load_arrays

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from mmengine.structures import InstanceData

from dcnv4_mm.bev.heads.dd3d_head import DD3DHead

RECORDED = load_arrays("bevformerv2/tiny_dd3d")


def group(prefix):
    return {
        key.removeprefix(prefix): torch.from_numpy(np.asarray(array))
        for key, array in RECORDED.items()
        if key.startswith(prefix)
    }


@pytest.fixture(scope="module")
def head():
    head = DD3DHead(in_channels=32, norm_cfg=dict(type="BN"))
    head.load_state_dict(group("w/"))
    return head.train()


@pytest.fixture(scope="module")
def instances():
    imgs = []
    for index in range(3):
        objects = group(f"in/img{index}/")
        boxes = objects["gt_box3d_quat_tvec_wlh_cam"]
        img = InstanceData(
            bboxes=objects["gt_boxes"],
            labels=objects["gt_classes"],
            quaternions=boxes[:, :4],
            centers=boxes[:, 4:7],
            wlh=boxes[:, 7:],
            attributes=objects["gt_attributes"],
            speeds=objects["gt_speeds"],
        )
        img.set_metainfo(dict(intrinsics=objects["intrinsics"]))
        imgs.append(img)
    return imgs


@pytest.fixture(scope="module")
def outputs(head):
    levels = group("in/feat_l")
    return head([levels[str(level)].float() for level in range(5)])


def close(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["logits", "box2d_reg", "centerness"])
def test_forward(outputs, name):
    for level, result in enumerate(outputs[name]):
        close(result, torch.from_numpy(RECORDED[f"train/{name}_l{level}"]))


def test_assignment_and_targets(head, outputs, instances):
    """Targets of all locations; boxes are compared by their corners."""
    shapes = [tuple(level.shape[-2:]) for level in outputs["logits"]]
    labels, positives = head.targets(shapes, instances)
    expected = group("aux/")
    assert torch.equal(labels, expected["labels"].long())
    assert torch.equal(positives.indices, expected["pos_inds"])
    assert torch.equal(positives.points, expected["pos_locations"])
    assert torch.equal(positives.attributes, expected["pos_attributes"])
    close(positives.ltrb, expected["pos_box2d_reg_targets"])
    torch.testing.assert_close(positives.speeds, expected["pos_speeds"], equal_nan=True)
    corners = positives.boxes.corners(positives.inverse_intrinsics)
    close(corners, expected["pos_box3d_target_corners"])


def test_losses_and_gradients(head, outputs, instances):
    losses = head.loss_by_feat(outputs, instances)
    expected = group("train/loss/")
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    sum(losses.values()).backward()
    norms = group("train/gradnorm/")
    gradients = {
        name: parameter.grad.double().norm().item() for name, parameter in head.named_parameters()
    }
    assert gradients.keys() == norms.keys()
    for name, norm in norms.items():
        assert gradients[name] == pytest.approx(norm.item(), rel=1e-3, abs=1e-7), name
