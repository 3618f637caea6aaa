"""FlashInternImage through timm's interface."""

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed")

import timm
from timm.optim import param_groups_layer_decay

import dcnv4_mm.timm  # noqa: F401
from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released, to_released

FLASH = [f"flash_internimage_{size}" for size in ("tiny", "small", "base", "large")]
INTERN = [f"internimage_{size}" for size in ("tiny", "small", "base", "large", "xlarge")]
TINY = "flash_internimage_tiny"
# Small enough for fast tests.
ARCH = {"channels": 8, "depths": (1, 2, 2, 1), "groups": (1, 1, 2, 2)}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def create(**arguments):
    torch.manual_seed(0)
    return timm.create_model(TINY, arch=ARCH, **arguments).eval()


@pytest.fixture(scope="module")
def source():
    """The classifier of this package, with random weights, also in the offsets."""
    model = FlashInternImage(ARCH, layer_scale=None, num_classes=1000).eval()
    generator = torch.Generator().manual_seed(1)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.02, generator=generator)
    return model


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "flash_intern_image_t_1k_224.pth"
    torch.save({"model": to_released(source), "epoch": 299}, path)
    return str(path)


@pytest.mark.parametrize("name", [*FLASH, *INTERN])
def test_registered_models_have_our_classifiers_keys(name):
    assert name in timm.list_models("*internimage*")
    size = name.rsplit("_", 1)[1]
    with torch.device("meta"):
        model = timm.create_model(name)
        ours = FlashInternImage(
            size,
            core_op="DCNv4" if name in FLASH else "DCNv3",
            layer_scale=None if size == "tiny" else 1e-5,
            num_classes=1000,
        )
    shapes = [{k: t.shape for k, t in m.state_dict().items()} for m in (model, ours)]
    assert shapes[0] == shapes[1]
    cfg = model.pretrained_cfg
    project = "DCNv4" if name in FLASH else "InternImage"
    assert cfg["url"].startswith(f"https://huggingface.co/OpenGVLab/{project}/resolve/main/")
    assert cfg["input_size"] == ((3, 384, 384) if "large" in size else (3, 224, 224))
    assert model.get_parameter(f"{cfg['classifier']}.weight").shape[0] == cfg["num_classes"]
    assert model.get_parameter(f"{cfg['first_conv']}.weight").shape[1] == 3


@pytest.mark.parametrize("custom_load", [False, True])
@torch.inference_mode()
def test_a_released_file_gives_the_same_logits(source, file, custom_load):
    overlay = {"file": file, "custom_load": custom_load}
    model = create(pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model(IMAGES), source(IMAGES))
    direct = create()
    load_released(direct, file)
    assert torch.equal(direct(IMAGES), source(IMAGES))


@torch.inference_mode()
def test_a_released_file_for_other_classes(source, file):
    overlay = {"file": file, "custom_load": True}
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7)
    assert torch.equal(model.head.conv.weight, source.head.conv.weight)
    assert model(IMAGES).shape == (2, 7)


@torch.inference_mode()
def test_features_only(source, file):
    overlay = {"file": file, "custom_load": True}
    model = create(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    backbone = FlashInternImage(ARCH, layer_scale=None).eval()
    load_released(backbone, file)
    maps = model(IMAGES)
    assert model.feature_info.channels() == [m.shape[1] for m in maps] == [8, 16, 32, 64]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for one, other in zip(maps, backbone(IMAGES), strict=True):
        assert torch.equal(one, other)
    some = create(
        pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=(0, 2)
    )
    for one, other in zip(some(IMAGES), (maps[0], maps[2]), strict=True):
        assert torch.equal(one, other)
    # The last stage and the head are gone.
    assert not any("levels.3" in key or "head" in key for key in some.state_dict())


@torch.inference_mode()
def test_features_and_head():
    model = create()
    features = model.forward_features(IMAGES)
    assert features.shape == (2, model.num_features, 2, 3)
    assert torch.equal(model.forward_head(features), model(IMAGES))
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(hidden), model(IMAGES))
    model.reset_classifier(5)
    assert model(IMAGES).shape == (2, 5)
    model.reset_classifier(0)
    assert torch.equal(model(IMAGES), hidden)
    model.reset_classifier(0, "")
    assert model(IMAGES).mean((2, 3)).sub(hidden).abs().max() < 1e-6
    assert torch.equal(create(num_classes=0)(IMAGES), hidden)


@torch.inference_mode()
def test_intermediates():
    model = create()
    last, maps = model.forward_intermediates(IMAGES)
    assert torch.equal(last, maps[-1])
    assert len(maps) == 4
    (found,) = model.forward_intermediates(
        IMAGES, indices=[-3], stop_early=True, intermediates_only=True, output_fmt="NHWC"
    )
    assert torch.equal(found.permute(0, 3, 1, 2), maps[1])
    assert len(model.forward_intermediates(IMAGES, indices=2, intermediates_only=True)) == 2
    for indices in ([4], [-5], 5, []):
        with pytest.raises(ValueError, match=r"0\.\.3"):
            model.forward_intermediates(IMAGES, indices=indices)
    with pytest.raises(ValueError, match="NLC"):
        model.forward_intermediates(IMAGES, output_fmt="NLC")


def test_layer_decay_covers_every_parameter_once():
    model = create()
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    blocks = [scales[id(p)] for n, p in model.named_parameters() if n.endswith("mlp.fc1.weight")]
    assert blocks == sorted(blocks)
    assert len(set(blocks)) == sum(model.arch.depths)
    assert scales[id(model.patch_embed.conv1.weight)] < blocks[0]
    assert scales[id(model.head.fc.weight)] == 1


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for enable in (False, True):
        model = create(num_classes=3)
        model.set_grad_checkpointing(enable)
        model(IMAGES).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("arguments", [{"global_pool": "max"}, {"global_pool": ""}])
def test_pooling_that_does_not_exist(arguments):
    with pytest.raises(ValueError, match="global_pool"):
        create(**arguments)


def test_attention_pooling_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="h or g"):
        timm.create_model("internimage_tiny", arch="h")


@torch.inference_mode()
def test_internimage_gives_the_same_logits(tmp_path):
    ours = FlashInternImage(ARCH, core_op="DCNv3", layer_scale=None, num_classes=1000).eval()
    torch.save({"model": to_released(ours)}, tmp_path / "file.pth")
    overlay = {"file": str(tmp_path / "file.pth"), "custom_load": True}
    model = timm.create_model(
        "internimage_tiny", arch=ARCH, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    assert torch.equal(model(IMAGES), ours(IMAGES))
