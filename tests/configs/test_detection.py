"""The twelve detection configs have the settings of the originals.

The tables hold the values of the original configs under the names of their libraries (mmdet 2,
mmcv 1). ``translate`` expresses a config of this project in those names; every key of the table is
compared, or stands in ``NO_COUNTERPART`` with the reason.
"""

import json

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from configs.mmdet_names import translate
from helpers import build_model, hyperparameters
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from configs import original_names

pytestmark = pytest.mark.mmdet

VALUES = hyperparameters("mask_rcnn", "cascade", "dino")
NO_COUNTERPART = {
    **original_names.NO_COUNTERPART,
    **{
        f"data.{phase}.{key}": "segmentation only"
        for phase in ("train", "val", "test")
        for key in ("img_dir", "ann_dir")
    },
    "data.train.data_root": "here the common part of the paths, which are compared joined",
    "data.val.data_root": "as for training",
    "data.test.data_root": "as for training",
    "model.neck.use_residual": "the top-down sum; mmdet's FPN always has it",
    "model.bbox_head.in_channels": "DINO: an argument that mmdet 2 does not use",
    **{
        f"model.roi_head.bbox_head.{stage}.with_dcn": "Cascade 1x: an own head's option, off"
        for stage in range(3)
    },
}


@pytest.fixture(scope="module", params=VALUES, ids=lambda stem: stem.replace("flash_intern", ""))
def case(request):
    """The original's name, its values, our config and the model built from it, without memory."""
    model, cfg = build_model(request.param, device="meta")
    return request.param, VALUES[request.param], cfg, model


def test_values_equal_the_originals(case):
    _, values, cfg, model = case
    ours = json.loads(json.dumps(translate(cfg, model)))
    compared = {k: v for k, v in values.items() if k not in NO_COUNTERPART}
    for key, value in compared.items():
        if value == "DCNv4FCBBoxHead":
            # With its option off it is the plain one: the 3x config, of the same names, has that.
            assert values[key.replace("type", "with_dcn")] is False
            compared[key] = "ConvFCBBoxHead"
    assert set(compared) - set(ours) == set()
    assert {k: ours[k] for k in compared} == compared
    # Nothing in the model section that the original does not have.
    assert {k for k in ours if k.startswith("model.")} <= set(values)


def test_learning_rate_follows_the_original_formula(case):
    """The rate at every iteration, with epochs of 700 iterations to see warm-up and steps."""
    _, values, cfg, _ = case
    epoch_length, lr = 700, values["optimizer.lr"]
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = [
        PARAM_SCHEDULERS.build({"optimizer": optimizer, **scheduler})
        for scheduler in cfg.param_scheduler
    ]
    for iteration in range(values["schedule.max_epochs"] * epoch_length):
        epoch = iteration // epoch_length
        expected = lr * values["schedule.gamma"] ** sum(epoch >= s for s in values["schedule.step"])
        if iteration < 500:
            expected *= 1 - (1 - iteration / 500) * (1 - values["schedule.warmup_ratio"])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6), iteration
        schedulers[0].step()
        if (iteration + 1) % epoch_length == 0:
            schedulers[1].step()


def test_optimizer_can_be_built(case):
    _, values, cfg, model = case
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    parameters = [p for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in parameters) == values["num_parameters"]
