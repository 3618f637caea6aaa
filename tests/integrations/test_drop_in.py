"""ConvNeXt-B and ViT-B with DCNv4: mmpretrain's classes, timm's and torchvision's, UPerNet."""

import copy
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from helpers import ROOT

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from dcnv4_mm.layers import swap_attention, swap_convolutions
from dcnv4_mm.layers.drop_in import DCNv4Attention, DCNv4Conv2d

pytestmark = pytest.mark.mmpretrain

FOLDER = ROOT / "configs" / "drop_in"
CONVNEXT = "convnext-base-dcnv4_32xb128-300e_in1k-224"
VIT = "vit-base-p16-dcnv4_32xb128-300e_in1k-224"
ORIGINALS = {CONVNEXT: "ConvNeXt", VIT: "VisionTransformer"}
# Modules replaced, and what they are called.
BRANCHES = {CONVNEXT: (36, "depthwise_conv"), VIT: (12, "attn")}
SEGMENTORS = (
    "upernet_convnext-base-dcnv4_8xb2-amp-160k_ade20k-512x512",
    "upernet_vit-base-p16-dcnv4-mln_8xb2-160k_ade20k-512x512",
)


def load_config(name):
    return Config.fromfile(FOLDER / f"{name}.py")


def build(name, kind=None):
    """The classifier of a config; with another kind of backbone if one is given."""
    model = copy.deepcopy(load_config(name).model)
    model.backbone.type = kind or model.backbone.type
    return MODELS.build(model)


@pytest.fixture(scope="module", params=BRANCHES, ids=("convnext", "vit"))
def case(request):
    torch.manual_seed(0)
    model = build(request.param)
    for layer in layers_of(model):
        torch.nn.init.normal_(layer.offset_mask.weight, std=0.02)
    return request.param, model


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, DCNv4Conv2d | DCNv4Attention)]


def test_weights_of_the_original_reach_all_other_parts(case):
    name, model = case
    model = copy.deepcopy(model)
    original = build(name, f"mmpretrain.{ORIGINALS[name]}")
    count, branch = BRANCHES[name]
    assert len(layers_of(model)) == count
    weights = original.state_dict()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing
    assert all(f".{branch}." in key for key in (*missing, *unexpected))
    own = model.state_dict()
    loaded = [key for key in weights if key not in unexpected]
    assert all(torch.equal(own[key], weights[key]) for key in loaded)
    assert {key for key in weights if f".{branch}." not in key} == set(loaded)


def test_forward_and_backward(case):
    # In training, stochastic depth may drop a layer for both images.
    model = copy.deepcopy(case[1]).eval()
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 1000)
    logits.square().sum().backward()
    for layer in layers_of(model):
        gradient = layer.offset_mask.weight.grad
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_autocast(case, dtype):
    _, model = case
    model.eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    with torch.autocast("cpu", dtype):
        output = model(x)
    # Rounding in 12 to 36 blocks.
    error = (output.float() - expected).abs().max().item()
    assert error <= 32 * torch.finfo(dtype).eps * expected.abs().max().item()


def test_mmengines_initialisation_leaves_the_start(case):
    name, _ = case
    model = build(name)
    model.init_weights()
    for layer in layers_of(model):
        assert not layer.offset_mask.weight.any()
        assert layer.offset_mask.bias.unique().tolist() == pytest.approx([0, 1 / 9])


@pytest.mark.parametrize("name", BRANCHES)
def test_the_metafile_knows_the_size(name):
    assert parameters_of(build(name)) == listed(name)


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def listed(name):
    """Number of parameters in the metafile; the README has it in millions."""
    models = yaml.safe_load((FOLDER / "metafile.yml").read_text())["Models"]
    (count,) = (m["Metadata"]["Parameters"] for m in models if m["Name"] == name)
    (row,) = (r for r in (FOLDER / "README.md").read_text().splitlines() if f"({name}.py)" in r)
    assert f"| {count / 1e6:.1f} M |" in row
    return count


def test_stochastic_depth_of_the_attention_stays():
    model = build(VIT)
    rates = [layer.attn.out_drop.drop_prob for layer in model.backbone.layers]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


@pytest.fixture
def mmseg_scope():
    """The scope of mmseg, which is not left behind."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.mark.mmseg
@pytest.mark.parametrize("name", SEGMENTORS)
@pytest.mark.usefixtures("mmseg_scope")
def test_one_training_step_of_upernet(name, monkeypatch):
    # mmseg imports mmcv's compiled operators, of which UPerNet calls none.
    monkeypatch.setitem(sys.modules, "mmcv._ext", MagicMock(__spec__=ModuleSpec("mmcv._ext", None)))
    from mmengine.optim import build_optim_wrapper
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS as SEGMENTORS_REGISTRY
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    config = load_config(name)
    config.model.data_preprocessor.size = (64, 64)
    model = revert_sync_batchnorm(SEGMENTORS_REGISTRY.build(config.model)).train()
    assert len(layers_of(model)) == BRANCHES[CONVNEXT if "convnext" in name else VIT][0]
    assert parameters_of(model) == listed(name)
    settings = {**config.optim_wrapper, "type": "OptimWrapper"}
    settings.pop("loss_scale", None)
    wrapper = build_optim_wrapper(model, settings)
    layer = layers_of(model)[0]
    before = layer.offset_mask.bias.detach().clone()
    labels = PixelData(data=torch.randint(0, 150, (1, 64, 64)))
    data = {
        "inputs": [torch.randint(0, 255, (3, 64, 64)).byte() for _ in range(2)],
        "data_samples": [SegDataSample(gt_sem_seg=labels) for _ in range(2)],
    }
    losses = model.train_step(data, wrapper)
    assert all(loss.isfinite().all() for loss in losses.values())
    assert not torch.equal(layer.offset_mask.bias, before)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@torch.inference_mode()
def test_trees_of_torchvision_and_timm():
    import timm
    import torchvision
    from timm.models.vision_transformer import Attention

    x = torch.randn(1, 3, 224, 224)
    for model in (
        torchvision.models.convnext_tiny(),
        timm.create_model("convnext_atto", num_classes=1000),
    ):
        assert swap_convolutions(model, group_channels=8) in (18, 12)
        assert model.eval()(x).isfinite().all()
    for model, kind in (
        (torchvision.models.vit_b_16(), torch.nn.MultiheadAttention),
        (timm.create_model("vit_tiny_patch16_224"), Attention),
    ):
        assert swap_attention(model, kind, group_channels=32) == 12
        assert model.eval()(x).shape == (1, 1000)
