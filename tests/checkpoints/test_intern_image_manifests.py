"""Keys and shapes of every released InternImage against this package's, both ways."""

import pytest
import torch
from backbones.intern_image import backbone_arguments, build, manifest, models, numbered

from dcnv4_mm.backbones import DCNV3_ARCHS, FlashInternImage
from dcnv4_mm.backbones.archs import Arch
from dcnv4_mm.checkpoints import convert, to_released
from dcnv4_mm.checkpoints.flash_intern_image import RULES
from dcnv4_mm.checkpoints.key_mappings import find_key_mappings
from dcnv4_mm.checkpoints.loading import match_state_dict

ALONE = [(kind, stem) for kind in ("classification", "backbone") for stem in models(kind)]
COMPLETE = [(kind, stem) for kind in ("detection", "segmentation") for stem in models(kind)]


def shapes_of(state_dict):
    return {name: list(tensor.shape) for name, tensor in state_dict.items()}


def assert_places(model, released, buffers=()):
    """Every tensor of a file is loaded under the key that converts back to its own."""
    weights, report = match_state_dict(model, {"model": numbered(released, buffers)})
    assert not report.dropped
    assert not report.kept
    spelled = dict(zip(to_released(model), weights.values(), strict=True))
    for index, name in enumerate(released):
        # One value, as all entries share its memory.
        assert spelled[name][(0,) * spelled[name].dim()] == index, name


@pytest.mark.parametrize(("kind", "stem"), ALONE)
def test_classifiers_and_backbones(kind, stem):
    released, facts = manifest(kind, stem), models(kind)[stem]
    with torch.device("meta"):
        model = build(facts["kwargs"], num_classes=1000 if kind == "classification" else None)
    assert convert(released, RULES) == shapes_of(model.state_dict())
    assert released == shapes_of(to_released(model))
    assert facts["num_parameters"] == sum(p.numel() for p in model.parameters())
    if not model.arch.attention_pooling:
        assert list(released) == list(to_released(model))
    assert_places(model, released, facts["buffers"])


@pytest.mark.parametrize("stem", [stem for stem in models("classification") if "_like" not in stem])
def test_arch_table_says_the_same(stem):
    arguments = backbone_arguments(models("classification")[stem]["kwargs"])
    if stem == "rc":
        assert Arch(**arguments["arch"]) not in DCNV3_ARCHS.values()
        return
    assert Arch(**arguments["arch"]) == DCNV3_ARCHS[stem.split("_")[1]]


@pytest.mark.parametrize(("kind", "stem"), COMPLETE)
def test_backbones_of_detectors_and_segmentors(kind, stem):
    (arch,) = (name for name in DCNV3_ARCHS if f"_internimage_{name}_" in stem)
    complete = manifest(kind, stem)
    released = {n.removeprefix("backbone."): s for n, s in complete.items() if "backbone." in n}
    layer_scale = None if arch in ("h", "g") else 1.0
    with torch.device("meta"):
        model = FlashInternImage(
            arch, core_op="DCNv3", layer_scale=layer_scale, out_indices=(0, 1, 2, 3)
        )
    assert list(released.items()) == list(shapes_of(to_released(model)).items())
    weights, report = match_state_dict(model, {"state_dict": numbered(complete)})
    assert len(weights) == len(released)
    assert set(report.dropped) == {name for name in complete if not name.startswith("backbone.")}


def test_the_heads_around_are_found():
    """The heads around InternImage are spelled as around FlashInternImage."""
    for case in COMPLETE:
        found = [m.name for _, m in find_key_mappings(manifest(*case), released=True)]
        heads = [name for name in ("DINO", "Mask2Former") if case[1].startswith(name.lower())]
        assert found == ["FlashInternImage", *heads], case
