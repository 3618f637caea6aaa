"""Training with FSDP equals training without: two processes over gloo, on the CPU."""

import pytest
import torch
from engine import training
from engine.sharded_training import train
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import STRATEGIES
from mmengine.utils import get_object_from_string

from dcnv4_mm.backbones import ARCHS, FlashInternImage
from dcnv4_mm.engine import load_from_local
from dcnv4_mm.engine.fsdp import FSDPStrategy

CONFIGS = ROOT / "configs"


def test_sharded_training_equals_data_parallel_training(tmp_path):
    """Four steps at a rate of 1e-3; the file has the same names, and loads like any other.

    It can be resumed from. That the losses then are those of an unbroken run is not tested: on the
    CPU torch 2.13 writes Adam's exp_avg_sq into exp_avg.
    """
    options = {"processes": 2, "target": train}
    assert training.run(tmp_path / "plain", **options, sharded=False) == [0, 0]
    assert training.run(tmp_path / "sharded", **options, sharded=True) == [0, 0]
    plain, sharded = (
        load_from_local(str(tmp_path / folder / "epoch_2.pth"))["state_dict"]
        for folder in ("plain", "sharded")
    )
    assert plain.keys() == sharded.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=0, atol=1e-6)
    first = str(tmp_path / "sharded" / "epoch_1.pth")
    resumed = training.run(
        tmp_path / "resumed", **options, sharded=True, resume=True, load_from=first
    )
    assert resumed == [0, 0]


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(
            "cascade_mask_rcnn/cascade-mask-rcnn_flash-internimage-l_fpn_16xb4-3x_coco.py",
            marks=pytest.mark.mmdet,
        ),
        pytest.param(
            "bevformerv2/bevformerv2_flash-internimage-b_fpn_16xb1-24e-bi5_nus-3d.py",
            marks=pytest.mark.mmdet3d,
        ),
    ],
)
def test_the_config_joins_others(tmp_path, leaf):
    """The settings of docs/training.md wrap each block of the backbone."""
    path = tmp_path / "config.py"
    path.write_text(f"_base_ = {[str(CONFIGS / leaf), str(CONFIGS / '_base_/strategies/fsdp.py')]}")
    config = Config.fromfile(path)
    assert config.runner_type == "FlexibleRunner"
    assert STRATEGIES.get(config.strategy.type) is FSDPStrategy
    policy = get_object_from_string(config.strategy.model_wrapper.auto_wrap_policy)
    backbone = config.model.get("img_backbone") or config.model.backbone
    with torch.device("meta"):
        model = FlashInternImage(backbone.arch)
    pieces = [module for module in model.modules() if policy(module, False, 0)]
    assert len(pieces) == sum(ARCHS[backbone.arch].depths)
