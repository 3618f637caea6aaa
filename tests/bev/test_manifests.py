"""Names and shapes of the four released models against the configs, both ways."""

import pytest
import torch
from helpers import config_of, load_json

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from mmdet3d.registry import MODELS
from mmdet3d.utils import register_all_modules
from mmengine.config import Config

from dcnv4_mm.checkpoints.bevformerv2 import convert_boxes, restore_boxes

MANIFESTS = load_json("bevformerv2/manifests")


def build(stem):
    register_all_modules(init_default_scope=True)
    with torch.device("meta"):
        return MODELS.build(Config.fromfile(config_of(stem)).model)


@pytest.mark.parametrize("stem", MANIFESTS)
def test_names_and_shapes(stem):
    model, recorded = build(stem), MANIFESTS[stem]
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == recorded["tensors"]
    assert sum(p.numel() for p in model.parameters()) == recorded["num_parameters"]


@pytest.mark.parametrize("stem", MANIFESTS)
def test_a_released_file_fills_the_model_and_comes_back(stem):
    """Every tensor reaches its own parameter; only the last box layers are rearranged, and back."""
    released = {
        name: torch.full((10, *[1] * (len(shape) - 1)), float(index))
        if ".4." in name and "reg_branches" in name
        else torch.tensor(float(index)).expand(shape)
        for index, (name, shape) in enumerate(MANIFESTS[stem]["tensors"].items())
    }
    converted = convert_boxes({"state_dict": released})
    assert converted["state_dict"].keys() == build(stem).state_dict().keys()
    for index, (name, tensor) in enumerate(converted["state_dict"].items()):
        assert (tensor.abs() == index).all(), name
    restored = restore_boxes(converted)["state_dict"]
    assert all(torch.equal(restored[name], tensor) for name, tensor in released.items())


@pytest.mark.parametrize("stem", [s.replace("24ep", "48ep") for s in MANIFESTS if "t8" not in s])
def test_longer_training_changes_no_name(stem):
    longer, shorter = (
        Config.fromfile(config_of(stem)),
        Config.fromfile(config_of(stem.replace("48ep", "24ep"))),
    )
    assert longer.model == shorter.model
    assert longer.train_cfg.max_epochs == longer.param_scheduler[1].end == 48
    assert longer.param_scheduler[1].milestones == [44]
