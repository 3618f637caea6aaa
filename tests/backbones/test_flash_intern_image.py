"""The backbone's options; its numbers are compared in test_golden.py."""

from dataclasses import asdict

import pytest
import torch

from dcnv4_mm.backbones import ARCHS, DCNV3_ARCHS, FlashInternImage
from dcnv4_mm.backbones.archs import read_arch
from dcnv4_mm.layers import DCNv4

TINY = {"channels": 8, "depths": (1, 2, 1, 1), "groups": (1, 2, 4, 8)}


def tiny(arch=TINY, **arguments):
    """A small backbone whose offsets and masks are not zero."""
    torch.manual_seed(0)
    backbone = FlashInternImage(arch, **arguments)
    for module in backbone.modules():
        if isinstance(module, DCNv4):
            torch.nn.init.normal_(module.offset_mask.weight, std=0.3)
    return backbone


def gradients(backbone, images):
    loss = sum(maps.square().mean() for maps in backbone(images))
    return torch.autograd.grad(loss, list(backbone.parameters()), allow_unused=True)


@pytest.mark.parametrize("size", [(64, 96), (37, 70)])
def test_maps_are_contiguous_and_halve(size):
    """mmcv's CPU RoIAlign is silently wrong on anything but contiguous NCHW maps."""
    images = torch.randn(2, 3, *size).to(memory_format=torch.channels_last)
    maps = tiny(out_indices=(1, 3))(images)
    for index, features in zip((1, 3), maps, strict=True):
        expected = [-(-side // 2 ** (index + 2)) for side in size]
        assert features.shape == (2, 8 * 2**index, *expected)
        assert features.is_contiguous()


@pytest.mark.parametrize("arch", ARCHS)
def test_offset_layers_start_at_zero(arch):
    backbone = FlashInternImage({**asdict(ARCHS[arch]), "depths": (1, 1, 1, 1)})
    layers = [module for module in backbone.modules() if isinstance(module, DCNv4)]
    assert len(layers) == 4
    for layer in layers:
        assert not layer.offset_mask.weight.any()
        assert not layer.offset_mask.bias.any()


def test_every_arch_has_four_stages_of_dcnv4():
    for name, arch in ARCHS.items():
        assert len(arch.depths) == len(arch.groups) == 4, name
        assert all(arch.channels * 2**i % groups == 0 for i, groups in enumerate(arch.groups))


def test_checkpointing_changes_nothing():
    images = torch.randn(1, 3, 32, 32)
    plain, checkpointed = tiny(), tiny(with_cp=True)
    for expected, gradient in zip(
        gradients(plain, images), gradients(checkpointed, images), strict=True
    ):
        assert torch.equal(expected, gradient)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2])
def test_frozen_stages_learn_nothing_and_stay_in_evaluation_mode(frozen_stages):
    backbone = tiny(frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    frozen = {"patch_embed"} if frozen_stages >= 0 else set()
    frozen |= {f"levels.{index}" for index in range(frozen_stages)}
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (not any(name.startswith(f"{f}.") for f in frozen))
    for name in frozen:
        assert not backbone.get_submodule(name).training
    assert backbone.levels[3].training


def test_without_layer_scale_there_are_no_scales_and_the_numbers_stay():
    images = torch.randn(1, 3, 32, 32)
    scaled, plain = tiny(layer_scale=1.0).eval(), tiny(layer_scale=None).eval()
    names = set(plain.state_dict())
    assert {n for n in set(scaled.state_dict()) - names if "gamma" not in n} == set()
    plain.load_state_dict({n: p for n, p in scaled.state_dict().items() if n in names})
    for expected, maps in zip(scaled(images), plain(images), strict=True):
        torch.testing.assert_close(expected, maps, rtol=0, atol=1e-6)


def test_center_feature_scale_reaches_the_operator():
    backbone = tiny({**TINY, "post_norm": True, "center_feature_scale": True})
    assert "levels.0.blocks.0.dcn.center_feature_scale_proj.weight" in backbone.state_dict()
    # The level norm comes with it, as in the original's layout.
    assert "levels.3.norm.weight" in backbone.state_dict()
    backbone(torch.randn(1, 3, 32, 32))[3][:, 0].sum().backward()
    assert backbone.levels[0].blocks[0].dcn.center_feature_scale_proj.weight.grad.any()


def test_drop_path_grows_from_0_to_the_last_block():
    backbone = tiny(drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in backbone.levels for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_classification_head():
    classifier = tiny(num_classes=5)
    assert classifier(torch.randn(2, 3, 40, 33)).shape == (2, 5)


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        ("xl", {}, r"'nano', 't', 's', 'b', 'l', 'tiny', .*got 'xl'"),
        ({**TINY, "width": 3}, {}, "unknown fields"),
        ({"channels": 8}, {}, "lacks the fields"),
        (TINY, {"out_indices": (0, 4)}, "out_indices"),
        (TINY, {"frozen_stages": 5}, "frozen_stages"),
        (TINY, {"drop_path_rate": 1.0}, "below 1"),
    ],
)
def test_bad_arguments_are_refused(arch, arguments, message):
    with pytest.raises(ValueError, match=message):
        FlashInternImage(arch, **arguments)


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("backbone.patch_embed.conv1.weight", 0),
        ("backbone.levels.0.blocks.0.norm1.weight", 1),
        ("backbone.levels.1.blocks.1.dcn.offset_mask.bias", 3),
        ("backbone.levels.0.downsample.conv.weight", 2),
        ("backbone.levels.0.norm.weight", 2),
        ("backbone.levels.3.norm.weight", 5),
        ("backbone.levels.3.blocks.0.gamma1", 5),
        ("neck.lateral_convs.0.conv.weight", 6),
    ],
)
def test_layer_depth(name, depth):
    assert tiny().get_layer_depth(name, prefix="backbone.") == (depth, 7)


def test_long_names_of_architectures():
    for table, core_op in ((ARCHS, "DCNv4"), (DCNV3_ARCHS, "DCNv3")):
        long_names = ("tiny", "small", "base", "large", "xlarge", "huge", "giant")
        for long, short in zip(long_names, ("t", "s", "b", "l", "xl", "h", "g"), strict=True):
            if short in table:
                assert read_arch(long, core_op) is table[short]
    with pytest.raises(ValueError, match=r"'tiny'.* for DCNv4.*got 'xlarge'"):
        read_arch("xlarge", "DCNv4")


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"out_indices": (3, 2)}, ValueError, "out_indices"),
        ({"out_indices": (0, 0)}, ValueError, "out_indices"),
        ({"out_indices": ()}, ValueError, "out_indices"),
        ({"out_indices": (True,)}, TypeError, "out_indices"),
        ({"out_indices": 3}, TypeError, "out_indices"),
        ({"frozen_stages": True}, TypeError, "frozen_stages"),
        ({"drop_path_rate": "0.1"}, TypeError, "drop_path_rate"),
        ({"layer_scale": float("nan")}, ValueError, "layer_scale"),
        ({"with_cp": "no"}, TypeError, "with_cp"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"in_channels": "3"}, TypeError, "in_channels"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, error, name):
    with pytest.raises(error, match=name):
        FlashInternImage(TINY, **arguments)


def test_channels_follow_the_chosen_stages():
    backbone = tiny(out_indices=(0, 2))
    maps = backbone(torch.randn(1, 3, 32, 32))
    assert backbone.out_channels == [8, 32] == [features.shape[1] for features in maps]


def test_features_and_intermediates():
    images = torch.randn(1, 3, 64, 64)
    backbone = tiny(out_indices=(1, 2))
    expected = tiny()(images)
    assert torch.equal(backbone.forward_features(images), expected[-1])
    last, maps = backbone.forward_intermediates(images, indices=(-3, 0), stop_early=True)
    assert torch.equal(last, expected[1])
    assert all(map(torch.equal, maps, expected[:2]))
    for features in (backbone.forward_features(images), last, *maps):
        assert features.is_contiguous()
    (nhwc,) = backbone.forward_intermediates(
        images, indices=1, output_fmt="NHWC", intermediates_only=True
    )
    assert torch.equal(nhwc.permute(0, 3, 1, 2), expected[3])


def test_stages_after_the_last_one_are_not_computed():
    backbone = tiny(out_indices=(1,))
    backbone.levels[2].blocks[0].register_forward_hook(lambda *_: pytest.fail("computed"))
    backbone(torch.randn(1, 3, 32, 32))


def test_parameters_are_reset():
    """As after a start on the meta device: every parameter has the start of a new backbone."""
    network = FlashInternImage(TINY, layer_scale=0.5, num_classes=3)
    with torch.device("meta"):
        again = FlashInternImage(TINY, layer_scale=0.5, num_classes=3)
    again.to_empty(device="cpu")
    for parameter in again.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    again.reset_parameters()
    for (name, new), old in zip(again.named_parameters(), network.parameters(), strict=True):
        assert new.isfinite().all(), name
        # The spread of random weights, which tells PyTorch's own initialization from ours.
        spread = old.detach().std(correction=0).item()
        assert new.detach().std(correction=0).item() == pytest.approx(spread, rel=0.5), name
