"""get_flops.py: every operation is counted once, under the part that did it."""

import math
import sys

import pytest
import torch
from helpers import ROOT
from torch import nn

TOOLS = ROOT / "tools" / "analysis_tools"
QUICKSTART = TOOLS.parents[1] / "configs" / "quickstart"


@pytest.fixture
def get_flops(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import get_flops

    yield get_flops
    del sys.modules["get_flops"]


class Model(nn.Module):
    """Calls a layer of the head from outside of the head, as DINO does."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        self.head = nn.ModuleDict({"first": nn.Linear(5, 2), "second": nn.Linear(5, 7)})

    def data_preprocessor(self, data, training):
        return data

    def forward(self, inputs, mode):
        features = self.body(inputs)
        return self.head["first"](features), self.head["second"](features) @ features.new_ones(7, 1)


def test_every_operation_is_counted_once(get_flops):
    found = get_flops.count(Model(), {"inputs": torch.ones(4, 3)})
    body, first, second, product = (2 * 4 * n for n in (3 * 5, 5 * 2, 5 * 7, 7))
    assert found[""] == body + first + second + product
    assert found["body"] == found["body.0"] == body
    assert found["head"] == first + second
    assert found["head.first"] == first


@pytest.mark.mmdet
def test_operators_are_counted(get_flops):
    """DCNv4's 8 operations per channel and point; mmcv's attention as this package's."""
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from mmcv.ops import MultiScaleDeformableAttention
    from mmengine.registry import MODELS

    import dcnv4_mm.registry  # noqa: F401

    class Wrapped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def data_preprocessor(self, data, training):
            return data

        def forward(self, mode, **inputs):
            return self.model(**inputs)

    backbone = MODELS.build(dict(type="dcnv4_mm.FlashInternImage", arch="nano"))
    found = get_flops.count(Wrapped(backbone), {"images": torch.zeros(1, 3, 64, 64)})
    # [H * W of stage 1, channels]
    layer, pixels, channels = "model.levels.0.blocks.0.dcn", 16 * 16, 32
    dcn = backbone.levels[0].blocks[0].dcn
    linear = sum(m.weight.numel() for m in dcn.modules() if isinstance(m, nn.Linear))
    depthwise = sum(m.weight.numel() for m in dcn.modules() if isinstance(m, nn.Conv2d))
    assert found[layer] == pixels * (2 * (linear + depthwise) + 8 * 9 * channels)

    attention = MultiScaleDeformableAttention(32, num_levels=1, num_points=2)
    queries = 5
    inputs = {
        "query": torch.zeros(queries, 1, 32),
        "value": torch.zeros(36, 1, 32),
        "reference_points": torch.full((1, queries, 1, 2), 0.5),
        "spatial_shapes": torch.tensor([[6, 6]]),
        "level_start_index": torch.tensor([0]),
    }
    found = get_flops.count(Wrapped(attention), inputs)
    points = 8 * 2
    linear = 36 * 32 * 32 + queries * 32 * (3 * points + 32)
    assert found[""] == 2 * linear + 8 * queries * 2 * 32


@pytest.mark.mmdet
def test_table_of_a_config_by_name(run_tool, tmp_path):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    name = "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco"
    table = {}
    for height in (64, 128):
        arguments = (name, "--size", height, 64, "--depth", 1)
        lines = run_tool("get_flops.py", *arguments, cwd=tmp_path).stdout.splitlines()
        table[height] = {line.split()[0]: float(line.split()[-1]) for line in lines[1:]}
    assert set(table[64]) == {"MaskRCNN", "backbone", "neck", "rpn_head", "roi_head"}
    assert table[128]["backbone"] == pytest.approx(2 * table[64]["backbone"], abs=0.02)
    for parts in table.values():
        total = parts.pop("MaskRCNN")
        assert math.isclose(total, sum(parts.values()), abs_tol=0.03)


@pytest.mark.mmpretrain
def test_classifier(run_tool, tmp_path):
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    (config,) = QUICKSTART.glob("flash-internimage-nano*.py")
    printed = run_tool("get_flops.py", config, "--size", 64, 64, cwd=tmp_path).stdout
    assert "ImageClassifier" in printed
