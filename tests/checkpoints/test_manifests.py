"""Keys and shapes of every released model against this package's, both ways."""

import pytest
import torch
from helpers import backbone_kwargs, build_model, load_all, manifest, manifest_stems

from dcnv4_mm.backbones import ARCHS, FlashInternImage
from dcnv4_mm.backbones.archs import Arch
from dcnv4_mm.checkpoints import convert, to_released
from dcnv4_mm.checkpoints.flash_intern_image import RULES
from dcnv4_mm.checkpoints.key_mappings import convert_keys, find_key_mappings
from dcnv4_mm.checkpoints.loading import match_state_dict

MODELS = load_all("manifests")["models"]
CASES = [(kind, stem) for kind in ("classification", "backbone") for stem in MODELS[kind]]


def build(kind, stem):
    """A released classifier or backbone, without memory."""
    kwargs = backbone_kwargs(MODELS[kind][stem]["kwargs"])
    with torch.device("meta"):
        return FlashInternImage(**kwargs, num_classes=1000 if kind == "classification" else None)


def shapes_of(state_dict):
    return [(name, list(tensor.shape)) for name, tensor in state_dict.items()]


def test_all_released_models_are_here():
    assert {kind: len(models) for kind, models in MODELS.items()} == {
        "classification": 4,
        "backbone": 21,
        "mask_rcnn": 6,
        "cascade": 2,
        "dino": 4,
    }


@pytest.mark.parametrize(("kind", "stem"), CASES)
def test_names_shapes_and_order(kind, stem):
    released, model = manifest(kind, stem), build(kind, stem)
    assert list(convert(released, RULES).items()) == shapes_of(model.state_dict())
    assert list(released.items()) == shapes_of(to_released(model))
    assert MODELS[kind][stem]["num_parameters"] == sum(p.numel() for p in model.parameters())
    buffers = convert(dict.fromkeys(MODELS[kind][stem]["buffers"]), RULES)
    assert list(buffers) == [name for name, _ in model.named_buffers()]


@pytest.mark.parametrize(("kind", "stem"), CASES)
def test_every_tensor_reaches_its_own_place(kind, stem):
    """The i-th tensor of a released file is the i-th of the model, independent of the rules."""
    model = build(kind, stem)
    numbered = {
        name: torch.tensor(float(index)).expand(shape)
        for index, (name, shape) in enumerate(manifest(kind, stem).items())
    }
    for name in MODELS[kind][stem]["buffers"]:
        if name.endswith("num_batches_tracked"):
            numbered[name] = numbered[name].long()
    weights, report = match_state_dict(model, {"model": numbered})
    assert list(weights) == list(model.state_dict())
    for index, tensor in enumerate(weights.values()):
        assert (tensor == index).all()
    assert not report.dropped
    assert not report.kept


@pytest.mark.parametrize("stem", manifest_stems("backbone"))
def test_arch_table_says_the_same(stem):
    arch = backbone_kwargs(MODELS["backbone"][stem]["kwargs"])["arch"]
    arch = Arch(**{k: tuple(v) if isinstance(v, list) else v for k, v in arch.items()})
    assert arch in ARCHS.values()


DETECTORS = [(kind, stem) for kind in ("mask_rcnn", "cascade", "dino") for stem in MODELS[kind]]


@pytest.mark.mmdet
@pytest.mark.parametrize(("kind", "stem"), DETECTORS)
def test_detectors(kind, stem):
    released, (model, _) = manifest(kind, stem), build_model(stem, device="meta")
    own = model.state_dict()
    # The hosts order DINO's modules differently.
    assert convert_keys(released, find_key_mappings(own)) == dict(shapes_of(own))
    found = find_key_mappings(released, released=True)
    assert convert_keys(released, found) == dict(shapes_of(own))
    assert released == dict(shapes_of(to_released(model)))
    assert MODELS[kind][stem]["num_parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.mmdet
@pytest.mark.parametrize(("kind", "stem"), DETECTORS)
def test_every_tensor_of_a_detector_is_used_once(kind, stem):
    model, _ = build_model(stem, device="meta")
    numbers = {name: float(i) for i, name in enumerate(manifest(kind, stem))}
    numbered = {
        name: torch.tensor(numbers[name]).expand(shape)
        for name, shape in manifest(kind, stem).items()
    }
    for name in MODELS[kind][stem]["buffers"]:
        if name.endswith("num_batches_tracked"):
            numbered[name] = numbered[name].long()
    copies = {"ema_" + name.replace(".", "_"): numbered[name] for name in numbered}
    weights, report = match_state_dict(model, {"state_dict": numbered | copies})
    assert set(report.dropped) == set(copies)
    assert sorted(tensor.flatten()[0].item() for tensor in weights.values()) == sorted(
        numbers.values()
    )
    if kind != "dino":
        assert [tensor.flatten()[0].item() for tensor in weights.values()] == list(numbers.values())
