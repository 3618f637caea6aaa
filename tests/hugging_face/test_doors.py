"""One released file through every door: plain PyTorch, timm, transformers, torch.hub, mmengine."""

import runpy
import sys

import pytest
import torch
from helpers import ROOT

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import timm
import transformers_models as tiny_models
from safetensors.torch import load_file

import dcnv4_mm.timm  # noqa: F401
import dcnv4_mm.transformers as door
from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released, to_released

SCRIPT = ROOT / "tools" / "model_converters" / "hugging_face.py"
ARCH = {"channels": 16, "depths": [1, 1, 2, 1], "groups": [1, 2, 4, 8]}
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def randomize(model):
    generator = torch.Generator().manual_seed(1)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.05, generator=generator)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def make_config(**arguments):
    return door.FlashInternImageConfig(arch=ARCH, num_labels=5, **arguments)


@pytest.fixture(scope="module")
def classifier():
    return randomize(FlashInternImage("nano", layer_scale=None, num_classes=7))


@pytest.fixture(scope="module")
def file(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "flash_intern_image_nano_64.pth"
    torch.save({"model": to_released(classifier), "epoch": 299}, path)
    return path


def convert(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def folder(file, tmp_path, monkeypatch):
    convert(monkeypatch, file, tmp_path / "folder", "--image-size", 64)
    return tmp_path / "folder"


@torch.inference_mode()
def test_same_logits_through_every_door(classifier, file, folder):
    from dcnv4_mm.registry import MODELS

    plain = FlashInternImage("nano", layer_scale=None, num_classes=7)
    load_released(plain, file)
    overlay = {"file": str(file), "custom_load": True, "num_classes": 7}
    through_timm = timm.create_model(
        "flash_internimage_tiny",
        arch="nano",
        num_classes=7,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
    )
    transformed = transformers.AutoModelForImageClassification.from_pretrained(folder)
    hub = torch.hub.load(
        str(ROOT),
        "flash_internimage",
        source="local",
        arch="nano",
        weights=file,
        num_classes=7,
        layer_scale=None,
    )
    mm = MODELS.build(
        dict(
            type="dcnv4_mm.FlashInternImage",
            arch="nano",
            layer_scale=None,
            num_classes=7,
            init_cfg=dict(type="Pretrained", checkpoint=str(file)),
        )
    )
    mm.init_weights()
    expected = classifier(IMAGES)
    for model in (plain, through_timm, transformed, hub, mm):
        assert list(model.state_dict()) == list(classifier.state_dict())
        logits = model.eval()(IMAGES)
        assert torch.equal(getattr(logits, "logits", logits), expected)


def test_hub_downloads_an_address_once(classifier, file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = runpy.run_path(str(ROOT / "hubconf.py"))["flash_internimage"]
    address = file.as_uri()
    for _ in range(2):
        model = entry("nano", weights=address, num_classes=7, layer_scale=None)
        assert torch.equal(model.head.fc.weight, classifier.head.fc.weight)
        address = address.replace("file://", "nowhere://")
    assert [p.name for p in tmp_path.rglob("*.pth")] == [file.name]


def test_the_command_writes_what_every_door_reads(classifier, folder, tmp_path, monkeypatch):
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(classifier.state_dict())
    plain = FlashInternImage("nano", layer_scale=None, num_classes=7)
    load_released(plain, folder / "model.safetensors")
    convert(monkeypatch, folder, tmp_path / "back.pth")
    back, released = torch.load(tmp_path / "back.pth")["model"], to_released(classifier)
    assert back.keys() == released.keys()
    for key, tensor in released.items():
        assert torch.equal(back[key], tensor)
        assert torch.equal(to_released(plain)[key], tensor)


def test_the_command_overwrites_nothing(file, folder, monkeypatch):
    with pytest.raises(SystemExit, match="exists"):
        convert(monkeypatch, file, folder)


def test_the_command_refuses_other_files(tmp_path, monkeypatch):
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match=r"other\.pth.*classifier"):
        convert(monkeypatch, tmp_path / "other.pth", tmp_path / "folder")


def test_image_processor(folder):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    image = torch.randint(0, 256, (3, 80, 120), dtype=torch.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    white = processor(torch.full((3, 64, 64), 255, dtype=torch.uint8), return_tensors="pt")
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white["pixel_values"][0, :, 5, 5], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "core_op"),
    [("t", "DCNv4"), ("s", "DCNv4"), ("l", "DCNv4"), ("t", "DCNv3"), ("xl", "DCNv3")],
)
def test_the_architecture_is_read_from_the_shapes(arch, core_op):
    scale = None if arch == "t" else 1e-5
    with torch.device("meta"):
        model = FlashInternImage(arch, core_op=core_op, layer_scale=scale, num_classes=1000)
    config = door._config_of(model.state_dict(), 384)
    found = (config.arch, config.core_op, config.layer_scale, config.num_labels, config.image_size)
    assert found == (arch, core_op, scale, 1000, 384)


@torch.inference_mode()
def test_backbone_and_model_take_the_classifiers_folder(classifier, folder):
    # AutoBackbone.from_pretrained takes folders for names on the Hub.
    load = door.FlashInternImageBackbone.from_pretrained
    backbone = load(folder, out_features=tiny_models.STAGES)
    assert type(transformers.AutoBackbone.from_config(backbone.config)) is type(backbone)
    plain = FlashInternImage("nano", layer_scale=None)
    plain.load_state_dict(classifier.state_dict(), strict=False)
    maps = backbone(IMAGES).feature_maps
    for found, expected in zip(maps, plain(IMAGES), strict=True):
        assert torch.equal(found, expected)
        assert found.is_contiguous()
    assert backbone.channels == [m.shape[1] for m in maps]
    (last,) = load(folder)(IMAGES).feature_maps
    assert torch.equal(last, maps[-1])
    stem, second = load(folder, out_indices=[0, 2])(IMAGES).feature_maps
    assert stem.shape == (2, 32, 16, 24)
    assert torch.equal(second, maps[1])
    output = transformers.AutoModel.from_pretrained(folder)(IMAGES, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, maps[-1])
    assert torch.equal(output.pooler_output, maps[-1].mean((2, 3)))
    assert len(output.hidden_states) == 5
    assert torch.equal(backbone(IMAGES, return_dict=False)[0][-1], maps[-1])


def test_fresh_weights_start_as_our_constructors_do(folder):
    """Of a new model, and of the classifier of other classes."""
    torch.manual_seed(0)
    config = make_config(layer_scale=1e-5)
    model = door.FlashInternImageForImageClassification(config)
    blocks = [block for stage in model.levels for block in stage.blocks]
    assert all(not block.dcn.offset_mask.weight.any() for block in blocks)
    assert all((block.gamma1 == 1e-5).all() for block in blocks)
    assert 0.015 < model.head.fc.weight.std() < 0.025
    bound = (6 / (2 * ARCH["channels"])) ** 0.5
    assert 0.8 * bound < model.levels[0].blocks[0].dcn.value_proj.weight.abs().max() <= bound
    other = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    weights = load_file(folder / "model.safetensors")
    for key, tensor in other.state_dict().items():
        assert "head.fc" in key or torch.equal(tensor, weights[key])
    assert 0.01 < other.head.fc.weight.std() < 0.03
    assert not other.head.fc.bias.any()


def test_training_step_and_checkpointing():
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = door.FlashInternImageForImageClassification(make_config()).train()
        if enable:
            model.gradient_checkpointing_enable()
        output = model(IMAGES, labels=torch.tensor([1, 4]))
        expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([1, 4]))
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_mask2former_and_upernet_take_the_backbone(tmp_path):
    backbone = make_config(layer_scale=1.0, out_features=tiny_models.STAGES)
    mask2former = tiny_models.mask2former(backbone, train_num_points=16)
    labels = dict(mask_labels=[torch.ones(1, 64, 96)] * 2, class_labels=[torch.tensor([0])] * 2)
    mask2former(IMAGES, **labels).loss.backward()
    upernet = tiny_models.make(
        "UperNet",
        "SemanticSegmentation",
        backbone_config=backbone,
        hidden_size=16,
        auxiliary_in_channels=64,
        num_labels=3,
    )
    loss = upernet(IMAGES, labels=torch.zeros(2, 64, 96, dtype=torch.long)).loss
    loss.backward()
    upernet.save_pretrained(tmp_path)
    again = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path)
    for key, tensor in upernet.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)
    for model in (mask2former, upernet):
        (found,) = [m for m in model.modules() if isinstance(m, door.FlashInternImageBackbone)]
        assert found.patch_embed.conv1.weight.grad.any()


def test_a_wrong_arch_is_refused():
    with pytest.raises(ValueError, match="arch"):
        door.FlashInternImageConfig(arch="huge")
