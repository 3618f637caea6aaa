"""`dcnv4_mm.DCNv4` as a convolution of the hosts: `dcn` of ResNet, and `conv_cfg`."""

import re

import numpy as np
import pytest
import torch
from helpers import ROOT

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from dcnv4_mm.layers import DCNv4Conv2d

pytestmark = pytest.mark.mmdet


@pytest.fixture
def mmdet_scope():
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


def documented(folder):
    """The example of docs/drop_in.md, without pretrained weights."""
    page = (ROOT / "docs" / "drop_in.md").read_text()
    (block,) = re.findall(r"^```python\n(_base_.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = folder / "config.py"
    path.write_text(block)
    model = Config.fromfile(path).model
    model.backbone.init_cfg = None
    return model


@pytest.mark.usefixtures("mmdet_scope")
def test_mask_rcnn_r50_c3_to_c5(tmp_path):
    torch.manual_seed(0)
    model = MODELS.build(documented(tmp_path))
    model.init_weights()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, DCNv4Conv2d)}
    counts = [sum(f"layer{stage}." in name for name in layers) for stage in (1, 2, 3, 4)]
    assert counts == [0, 4, 6, 3]
    strides = [layer.stride for layer in layers.values()]
    assert [strides.count((2, 2)), strides.count((1, 1))] == [3, 10]
    assert all(layer.groups == 4 and layer.output_proj.bias is None for layer in layers.values())
    # mmengine's initialization keeps the layer's own.
    assert all(not layer.offset_mask.weight.any() for layer in layers.values())
    # mmdet zero-initializes the last norm of each block, so that no gradient reaches the inside.
    for name, module in model.backbone.named_modules():
        if name.endswith("bn3"):
            torch.nn.init.ones_(module.weight)
    images = torch.randn(1, 3, 64, 96)
    maps = model.backbone(images)
    assert all(stage.is_contiguous() for stage in maps)
    names = ("img_shape", "pad_shape", "batch_input_shape")
    sample = DetDataSample(metainfo=dict.fromkeys(names, (64, 96)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 60.0, 50.0]]),
        labels=torch.tensor([3]),
        masks=BitmapMasks(np.ones((1, 64, 96), dtype=np.uint8), 64, 96),
    )
    loss, _ = model.parse_losses(model.loss(images, [sample]))
    loss.backward()
    for layer in layers.values():
        assert layer.offset_mask.weight.grad.isfinite().all()
        assert layer.offset_mask.weight.grad.any()


@pytest.mark.usefixtures("mmdet_scope")
def test_conv_cfg():
    module = ConvModule(
        *(64, 64, 3),
        stride=2,
        padding=1,
        conv_cfg={"type": "dcnv4_mm.DCNv4", "group_channels": 16},
        norm_cfg={"type": "BN"},
    )
    assert (type(module.conv), module.conv.groups) == (DCNv4Conv2d, 4)
    assert module.with_norm
    assert module(torch.randn(2, 64, 9, 7)).shape == (2, 64, 5, 4)
    with pytest.raises(ValueError, match="out_channels: expected in_channels = 64, got 32"):
        ConvModule(64, 32, 1, conv_cfg={"type": "dcnv4_mm.DCNv4", "group_channels": 16})
