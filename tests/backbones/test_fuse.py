"""`FlashInternImage.fuse()`: the same function by fewer operations, and what it refuses."""

import copy
from collections import Counter
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dcnv4_mm.backbones import ARCHS, FlashInternImage

SIZES = {"channels": 16, "depths": (2, 1, 1, 1), "groups": (1, 2, 4, 8)}
VARIANTS = {
    "as T": {},
    "biases": dict(dcn_output_bias=True, mlp_fc2_bias=True),
    "as S": dict(post_norm=True, dw_kernel_size=3),
    "convolution": dict(dw_kernel_size=3),
    "center": dict(center_feature_scale=True),
    "no middle": dict(remove_center=True, offset_scale=0.5),
    "two norms": dict(res_post_norm=True),
}


def make(variant="as T", **arguments):
    """A backbone in float64 whose every parameter matters."""
    torch.manual_seed(0)
    model = FlashInternImage({**SIZES, **VARIANTS[variant]}, **arguments).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.0 if "bias" in name else 1.0, std=0.3)
        elif "offset_mask.weight" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def images(**kwargs):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 37, 50, generator=generator, dtype=torch.float64).to(**kwargs)


def assert_equal(results, expected, tolerance=1e-10):
    for result, other in zip(results, expected, strict=True):
        assert (result - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("layer_scale", [None, 1.0])
@pytest.mark.parametrize("core_op", ["DCNv4", "DCNv3"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_maps_stay_the_same(variant, core_op, layer_scale):
    model = make(variant, core_op=core_op, layer_scale=layer_scale)
    expected = model(images())
    fused = copy.deepcopy(model).train().fuse()
    assert fused.is_fused
    assert not model.is_fused
    assert not any(module.training for module in fused.modules())
    assert_equal(fused(images()), expected)
    # A second call would scale twice.
    assert fused.fuse() is fused
    assert_equal(fused(images()), expected)
    assert not [name for name, _ in fused.named_parameters() if "gamma" in name]


class Operations(TorchDispatchMode):
    VIEWS = ("view", "t", "permute", "split_with_sizes", "_unsafe_view")

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in self.VIEWS:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def operations(model, images):
    with torch.no_grad(), Operations() as operations:
        model(images)
    return operations.found


def test_t_has_a_quarter_fewer_operations():
    model = FlashInternImage({**asdict(ARCHS["t"]), "channels": 16, "groups": (1, 2, 4, 8)}).eval()
    before = operations(model, torch.randn(1, 3, 64, 64))
    after = operations(model.fuse(), torch.randn(1, 3, 64, 64))
    assert after.total() <= 0.75 * before.total()
    # The four maps; the operator copies neither of the two parts that it reads.
    assert after["clone"] == before["clone"] == 4


def test_an_empty_batch():
    with torch.no_grad():
        maps = make().fuse()(images()[:0])
    assert [tuple(m.shape) for m in maps[:1]] == [(0, 16, 10, 13)]


def test_autocast():
    model = make().float()
    fused = copy.deepcopy(model).fuse()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_equal(fused(images(dtype=torch.float32)), model(images(dtype=torch.float32)), 0.05)


def test_gradients_reach_the_images():
    model, gradients = make(), []
    for backbone in (model, copy.deepcopy(model).fuse()):
        inputs = images().requires_grad_()
        loss = sum(maps.square().sum() for maps in backbone(inputs))
        gradients.append(torch.autograd.grad(loss, inputs)[0])
    assert_equal(gradients[1:], gradients[:1])


def test_training_is_refused():
    fused = make().fuse()
    with pytest.raises(RuntimeError, match="fused"):
        nn.Sequential(fused).train()
    fused.eval()
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize("variant", ["as T", "as S"])
@pytest.mark.parametrize("strict", [True, False])
def test_state_dicts_do_not_mix(variant, strict):
    models = nn.Sequential(make(variant)), nn.Sequential(make(variant).fuse())
    for model, other in (models, models[::-1]):
        with pytest.raises(RuntimeError, match=r"fuse\(\)"):
            model.load_state_dict(other.state_dict(), strict=strict)
        model.load_state_dict(copy.deepcopy(model).state_dict())
        # Keys of another part of a model.
        model.load_state_dict({"1.weight": torch.ones(1)}, strict=False)


def test_what_would_be_lost_is_refused():
    hooked, adapted = make(), make()
    handle = hooked.levels[1].blocks[0].dcn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"levels\.1\.blocks\.0\.dcn has forward hooks"):
        hooked.fuse()
    assert not hooked.is_fused
    handle.remove()
    hooked.fuse()
    nn.utils.parametrizations.weight_norm(adapted.levels[0].blocks[1].dcn.value_proj)
    with pytest.raises(ValueError, match=r"levels\.0\.blocks\.1\.dcn\.value_proj.*Parametrized"):
        adapted.fuse()
