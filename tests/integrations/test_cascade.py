"""Cascade Mask R-CNN L as configured: one training step and one test step."""

import pytest
import torch
from helpers import build_model

pytestmark = [pytest.mark.mmdet, pytest.mark.slow]

ORIGINAL = "cascade_flash_intern_image_l_fpn_1x_coco"


def test_a_training_step_and_a_test_step():
    """277 million parameters, random but for the zero offsets; an image with two objects."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.optim import build_optim_wrapper
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    model, config = build_model(ORIGINAL)
    optimizer = build_optim_wrapper(model, config.optim_wrapper)
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    masks[0, 10:40, 20:60] = 1
    masks[1, 5:60, 50:90] = 1
    meta = {"img_shape": (64, 96), "ori_shape": (64, 96), "scale_factor": (1.0, 1.0)}
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10.0, 60.0, 40.0], [50.0, 5.0, 90.0, 60.0]]),
        labels=torch.tensor([3, 7]),
        masks=BitmapMasks(masks.numpy(), 64, 96),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    watched = ["backbone.patch_embed.conv1.weight", "roi_head.bbox_head.2.fc_cls.weight"]
    before = {name: model.get_parameter(name).detach().clone() for name in watched}
    log = model.train_step({"inputs": [image], "data_samples": [sample]}, optimizer)
    stages = {f"s{stage}.{loss}" for stage in range(3) for loss in ("loss_cls", "loss_bbox")}
    assert stages | {f"s{stage}.loss_mask" for stage in range(3)} <= set(log)
    assert all(torch.as_tensor(value).isfinite().all() for value in log.values())
    for name, parameter in before.items():
        assert not torch.equal(model.get_parameter(name), parameter), name

    model.eval()
    model.roi_head.test_cfg.score_thr = 0.0
    with torch.no_grad():
        (found,) = model.test_step({"inputs": [image], "data_samples": [sample]})
    instances = found.pred_instances
    assert 0 < len(instances) <= 100
    assert instances.masks.shape[1:] == (64, 96)
    assert instances.bboxes.isfinite().all()
