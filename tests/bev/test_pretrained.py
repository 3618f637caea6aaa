"""What a training starts from."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import ROOT

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
import mmdet
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from dcnv4_mm.bev.layers.grid_mask import GridMask

CONFIGS = ROOT / "configs" / "bevformerv2"
R50 = sorted(CONFIGS.glob("*_r50_*.py"))
FCOS = Path(mmdet.__file__).parent / ".mim/configs/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"


@pytest.mark.parametrize("prefix", ["", "img_"])
def test_backbone_and_neck_start_from_fcos(tmp_path, prefix):
    """All of both, from mmdet's file, or by another prefix from the original's."""
    init_default_scope("mmdet")
    fcos = MODELS.build(Config.fromfile(FCOS).model)
    for parameter in [*fcos.parameters(), *fcos.buffers()]:
        torch.nn.init.uniform_(parameter) if parameter.is_floating_point() else None
    weights = {prefix + name: tensor for name, tensor in fcos.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "fcos.pth")
    model = Config.fromfile(R50[0]).model
    init_default_scope("mmdet3d")
    for name in ("backbone", "neck"):
        part = {**model[f"img_{name}"]}
        part["init_cfg"] = dict(
            part["init_cfg"], checkpoint=str(tmp_path / "fcos.pth"), prefix=f"{prefix}{name}."
        )
        if name == "backbone":
            part["norm_cfg"] = dict(type="BN")
        built = MODELS.build(part)
        built.init_weights()
        own = built.state_dict()
        assert own.keys() == getattr(fcos, name).state_dict().keys()
        for key, tensor in own.items():
            assert torch.equal(tensor, weights[f"{prefix}{name}.{key}"]), key


def test_all_r50_configs_start_from_the_same_file(tmp_path):
    """And without the file a training stops."""
    assert len(R50) == 8
    for path in R50:
        model = Config.fromfile(path).model
        for name in ("backbone", "neck"):
            start = model[f"img_{name}"].init_cfg
            assert start.type == "Pretrained"
            assert start.prefix == f"{name}."
            assert "fcos_r50_caffe" in start.checkpoint
    init_default_scope("mmdet3d")
    neck = MODELS.build({**model.img_neck, "init_cfg": {**start, "checkpoint": "missing.pth"}})
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        neck.init_weights()


@pytest.mark.parametrize("arch", ["s", "b"])
@pytest.mark.parametrize(("name", "seconds"), [("bi5", 4), ("bi9", 8)])
def test_both_readings_of_eight_seconds(arch, name, seconds):
    path = CONFIGS / f"bevformerv2_flash-internimage-{arch}_fpn_16xb1-24e-{name}_nus-3d.py"
    config = Config.fromfile(path)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        frames = loader.dataset.frames
        assert (frames[0], frames[-1]) == (-2 * seconds, 2 * seconds)
        assert {b - a for a, b in pairwise(frames)} == {4}
    assert config.model.pts_bbox_head.fusion.num_frames == len(frames)


def test_grid_mask_hides_as_much_as_the_original():
    """26.5 % of an image on average; in one of twenty more than 34.7 %, as measured of it."""
    torch.manual_seed(0)
    mask = GridMask(1.0)
    kept = torch.stack([mask._mask(640, 1600).mean() for _ in range(800)])
    # Three standard errors; the quantile's is about as large.
    assert kept.mean().item() == pytest.approx(0.735, abs=0.0055)
    assert kept.quantile(0.05).item() == pytest.approx(0.653, abs=0.012)
