"""Loading released weights: which part of a file, which names, and what is refused."""

import pytest
import torch
from torch import nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released, to_released


class Detector(nn.Module):
    """A stand-in for a host's detector."""

    def __init__(self, **arguments):
        super().__init__()
        self.backbone = random_model(**arguments)
        self.neck = nn.Conv2d(2, 3, 1)


def random_model(seed=0, **arguments):
    """A small model in which no two entries are alike; integers stay."""
    model = FlashInternImage("nano", **arguments)
    fill(model, seed)
    return model


def fill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def backbone():
    return random_model(seed=1)


@pytest.fixture
def source():
    return random_model(seed=2)


def test_round_trip(backbone, source):
    released = to_released(source)
    assert "levels.0.blocks.0.norm1.0.weight" in released
    report = load_released(backbone, released)
    assert same_weights(backbone, source)
    assert report.entry == ""
    assert set(report.loaded) == set(source.state_dict())
    assert report.renamed["patch_embed.norm2.1.bias"] == "patch_embed.norm2.bias"
    assert to_released(backbone).keys() == released.keys()


def test_own_names_fit_too(backbone, source):
    assert not load_released(backbone, source.state_dict()).renamed
    assert same_weights(backbone, source)


def test_center_feature_scale():
    """An option that no released model uses, in the original's spelling."""
    arch = {"channels": 8, "depths": (1, 1), "groups": (1, 2), "center_feature_scale": True}
    source = FlashInternImage(arch, out_indices=(0, 1))
    fill(source, 0)
    released = to_released(source)
    assert "levels.1.blocks.0.dcn.center_feature_scale_proj_weight" in released
    model = FlashInternImage(arch, out_indices=(0, 1))
    load_released(model, released)
    assert same_weights(model, source)


@pytest.mark.parametrize(
    ("entries", "used"),
    [
        (["model", "model_ema", "state_dict"], "state_dict"),
        (["model", "model_ema"], "model_ema"),
        (["model"], "model"),
    ],
)
def test_backbones_prefer_averaged_weights(backbone, source, entries, used):
    checkpoint = {entry: to_released(random_model(seed=9)) for entry in entries}
    checkpoint[used] = to_released(source)
    assert load_released(backbone, {"epoch": 3, **checkpoint}).entry == used
    assert same_weights(backbone, source)


def test_classifiers_prefer_plain_weights():
    """The original evaluates classifiers with `model`, also beside averaged weights."""
    source, other = (random_model(seed, num_classes=5) for seed in (2, 3))
    classifier = random_model(num_classes=5)
    checkpoint = {"model_ema": to_released(other), "model": to_released(source)}
    assert load_released(classifier, checkpoint).entry == "model"
    assert same_weights(classifier, source)


def test_an_entry_without_weights_is_passed_over(backbone, source):
    report = load_released(backbone, {"model_ema": None, "model": to_released(source)})
    assert report.entry == "model"


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "backbone.", "backbone.module.", "module.backbone."),
        *("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "backbone._orig_mod."),
        *("_fsdp_wrapped_module.", "module._fsdp_wrapped_module.backbone."),
    ],
)
def test_prefixes_are_stripped(backbone, source, prefix):
    released = {prefix + name: tensor for name, tensor in to_released(source).items()}
    load_released(backbone, {"model": released})
    assert same_weights(backbone, source)


def test_wrappers_inside_of_names_are_stripped(backbone, source):
    wrapper = "levels.0._checkpoint_wrapped_module."
    wrapped = {k.replace("levels.0.", wrapper): v for k, v in to_released(source).items()}
    assert any(wrapper in name for name in wrapped)
    load_released(backbone, wrapped)
    assert same_weights(backbone, source)


def test_a_prefix_on_some_names(backbone, source):
    released = {
        ("module." if index % 2 else "") + name: tensor
        for index, (name, tensor) in enumerate(to_released(source).items())
    }
    load_released(backbone, released)
    assert same_weights(backbone, source)


def test_a_name_with_and_without_prefix_is_refused(backbone, source):
    released = to_released(source)
    released["module.patch_embed.conv1.bias"] = released["patch_embed.conv1.bias"]
    with pytest.raises(ValueError, match="twice"):
        load_released(backbone, released)


def test_head_is_left_out_of_a_backbone(backbone):
    source = random_model(seed=2, num_classes=7)
    report = load_released(backbone, to_released(source))
    assert "conv_head.1.0.running_mean" in report.dropped
    assert {name.split(".")[0] for name in report.dropped} == {"conv_head", "head"}
    assert len(report.loaded) + len(report.dropped) == len(to_released(source))
    assert torch.equal(backbone.patch_embed.conv1.weight, source.patch_embed.conv1.weight)


def test_detector_and_back():
    source, detector = Detector(seed=1), Detector(seed=2)
    released = to_released(source)
    assert "backbone.patch_embed.norm1.1.weight" in released
    assert "neck.weight" in released
    report = load_released(detector, {"meta": {}, "state_dict": released})
    assert report.entry == "state_dict"
    assert same_weights(detector, source)


def test_backbone_of_a_detectors_file(backbone):
    source = Detector(seed=2)
    report = load_released(backbone, {"state_dict": to_released(source)})
    assert set(report.dropped) == {"neck.weight", "neck.bias"}
    assert same_weights(backbone, source.backbone)


def test_averaging_copies_are_dropped():
    """mmdet 2's averaging hook leaves the unaveraged weights under flat names."""
    source, detector = Detector(seed=1), Detector(seed=2)
    released = to_released(source)
    copies = {"ema_" + name.replace(".", "_"): torch.zeros_like(t) for name, t in released.items()}
    report = load_released(detector, {"state_dict": {**released, **copies}})
    assert set(report.dropped) == set(copies)
    assert same_weights(detector, source)


def test_a_flat_name_of_nothing_is_no_copy():
    released = {**to_released(Detector()), "ema_decay": torch.zeros(1)}
    with pytest.raises(ValueError, match="unexpected 1: ema_decay"):
        load_released(Detector(), released)


def test_file_without_layer_scale_means_one():
    source = random_model(seed=2, layer_scale=None)
    model = FlashInternImage("nano", layer_scale=1.0)
    report = load_released(model, to_released(source))
    assert set(report.kept) == {name for name in model.state_dict() if "gamma" in name}
    model.eval(), source.eval()
    images = torch.randn(1, 3, 32, 32)
    for one, other in zip(model(images), source(images), strict=True):
        assert torch.equal(one, other)


def test_file_without_layer_scale_needs_ones():
    model = FlashInternImage("nano", layer_scale=1e-5)
    with pytest.raises(ValueError, match=r"gamma1(?s:.)*layer_scale=1\.0"):
        load_released(model, to_released(random_model(layer_scale=None)))


def test_half_of_the_layer_scales_is_not_enough():
    released = to_released(random_model())
    del released["levels.0.blocks.0.gamma1"]
    with pytest.raises(ValueError, match=r"missing 1: levels\.0\.blocks\.0\.gamma1"):
        load_released(FlashInternImage("nano"), released)


BIAS = "patch_embed.conv1.bias"


def broken(**changes):
    """A released state dict with one bias changed, or left out for ``None``."""
    released = {**to_released(random_model(seed=2)), BIAS: changes.pop("bias", torch.zeros(16))}
    released.update(changes)
    return {name: tensor for name, tensor in released.items() if tensor is not None}


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (broken(bias=None), r"missing 1: patch_embed\.conv1\.bias"),
        (broken(extra=torch.zeros(1)), "unexpected 1: extra"),
        (
            broken(bias=torch.zeros(17)),
            r"patch_embed\.conv1\.bias \(\(17,\) float32 in the file, \(16,\) float32 in the model",
        ),
        (broken(bias=torch.zeros(16).long()), r"\(16,\) int64 in the file"),
        (broken(bias="text"), r"plain tensors.*: patch_embed\.conv1\.bias"),
        (broken(bias=torch.zeros(16).to_sparse()), "plain tensors"),
        (broken(bias=torch.zeros(16, device="meta")), "plain tensors"),
        ({**broken(), 7: torch.zeros(1)}, "plain tensors.*: 7"),
        ({}, "holds no weights"),
        ({"state_dict": {}}, "holds no weights"),
        ({"epoch": 3, "optimizer": {}}, "epoch, optimizer"),
        ({"conv1.weight": torch.zeros(3)}, "does not fit this FlashInternImage"),
    ],
)
def test_what_does_not_fit_changes_nothing(backbone, checkpoint, message):
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_released(backbone, checkpoint)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_backbones_file_in_a_detector_says_where_to():
    with pytest.raises(ValueError, match=r"load it into model\.backbone"):
        load_released(Detector(), to_released(random_model()))


def test_allowed_misfits_stay():
    source, classifier = random_model(2, num_classes=5), random_model(1, num_classes=3)
    before = classifier.head.fc.weight.clone()
    with pytest.raises(ValueError, match=r"head\.fc\.weight(?s:.)*`allow`"):
        load_released(classifier, to_released(source))
    report = load_released(classifier, to_released(source), allow=["head.fc."])
    assert set(report.kept) == {"head.fc.weight", "head.fc.bias"}
    assert torch.equal(classifier.head.fc.weight, before)
    assert torch.equal(classifier.head.conv.weight, source.head.conv.weight)


def test_allow_is_a_sequence(backbone):
    with pytest.raises(TypeError, match="sequence"):
        load_released(backbone, to_released(backbone), allow="head.")


def test_floating_types_are_cast(backbone, source):
    load_released(backbone.half(), {"model": to_released(source)})
    assert torch.equal(backbone.patch_embed.conv1.bias, source.patch_embed.conv1.bias.half())


@pytest.mark.parametrize("as_text", [False, True])
def test_from_a_file(tmp_path, backbone, source, as_text):
    path = tmp_path / "weights.pth"
    torch.save({"model": to_released(source), "epoch": 1}, path)
    load_released(backbone, str(path) if as_text else path)
    assert same_weights(backbone, source)


def test_a_refusal_names_the_file_and_both_models(tmp_path, backbone):
    path = tmp_path / "other.pth"
    torch.save({"model": to_released(random_model(num_classes=5))}, path)
    model = FlashInternImage("nano", num_classes=3)
    with pytest.raises(ValueError, match=r"head\.fc\.weight") as error:
        load_released(model, path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "5 classes" in message
    assert "3 classes" in message
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=rf"^{path}: .*dict.*list"):
        load_released(backbone, path)
