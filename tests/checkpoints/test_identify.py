"""The model and the configs that a checkpoint belongs to, for every released file."""

import re

import pytest
import torch
import torchvision
from helpers import ROOT, config_of, load_json, manifest, manifest_stems

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import to_released
from dcnv4_mm.checkpoints.identify import identify

SEGMENTORS = load_json("ade20k_manifests")["models"]["segmentation"]
KINDS = {
    "mask_rcnn": "Mask R-CNN",
    "cascade": "Cascade Mask R-CNN",
    "dino": "DINO",
    "classification": "a classifier",
}
RELEASED = [(kind, stem, name) for kind, name in KINDS.items() for stem in manifest_stems(kind)]
RELEASED += [
    ("segmentation", stem, "UPerNet" if stem.startswith("upernet") else "Mask2Former")
    for stem in SEGMENTORS
]


def empty(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize(("kind", "stem", "name"), RELEASED)
def test_released_files(kind, stem, name):
    found = identify(empty(manifest(kind, stem)))
    arch = re.search(r"intern_?image_([tsbl])", stem)[1]
    assert found.startswith(f"{name} with FlashInternImage-{arch.upper()}, ")
    classes = {"classification": 1000, "segmentation": 150}.get(kind, 80)
    assert f" {classes} classes" in found
    assert config_of(stem).name in re.findall(r"\S+\.py", found)


def test_the_metadata_name_the_config():
    weights = empty(manifest("dino", manifest_stems("dino")[0]))
    run = {"experiment_name": "my-dino_20260102_030405"}
    assert identify(weights, run).endswith("trained with my-dino")
    assert identify(weights, {"exp_name": "old.py"}).endswith("trained with old.py")
    assert "trained" not in identify(weights, {"exp_name": 3})
    assert "trained" not in identify(weights, "text")


@pytest.mark.parametrize("spelling", [FlashInternImage.state_dict, to_released])
def test_a_backbone_of_another_size(spelling):
    arch = {"channels": 16, "depths": (1, 2), "groups": (1, 2)}
    found = identify(spelling(FlashInternImage(arch, out_indices=(0, 1))))
    assert "FlashInternImage of 16 channels" in found
    assert "(1, 2)" in found


@pytest.mark.parametrize(
    ("arch", "kind", "name"),
    [
        ("nano", "roi_head.mask_head.x", "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini"),
        ("t", "decode_head.psp_modules.x", "upernet_flash-internimage-t_8xb2-160k_ade20k-512"),
        ("s", "pts_bbox_head.x", "bevformerv2_flash-internimage-s_fpn_16xb1-24e-bi5_nus-3d"),
    ],
)
def test_the_named_configs_exist(arch, kind, name):
    with torch.device("meta"):
        backbone = FlashInternImage(arch).state_dict()
    prefix = "img_backbone." if kind.startswith("pts") else "backbone."
    found = identify({kind: torch.ones(1), **{prefix + key: backbone[key] for key in backbone}})
    names = re.findall(r"\S+\.py", found)
    assert any(n.startswith(name) for n in names)
    assert all(list((ROOT / "configs").rglob(n)) for n in names)


def test_backbones_of_other_projects():
    with torch.device("meta"):
        models = [torchvision.models.resnet18(), torchvision.models.resnet50()]
        models += [torchvision.models.swin_t()]
    for model, name in zip(models, ("ResNet-18", "ResNet-50", "Swin"), strict=True):
        assert identify(model.state_dict()).startswith(name)
    weights = {f"img_backbone.{key}": x for key, x in models[1].state_dict().items()}
    found = identify({"pts_bbox_head.x": torch.ones(1), **weights})
    assert "BEVFormerV2 with ResNet-50" in found
    assert "bevformerv2_r50_fpn_16xb1-24e-t1_nus-3d.py" in found


def test_other_models():
    assert "conv1, stage1" in identify(
        {"stage1.0.weight": torch.ones(1), "conv1.weight": torch.ones(1)}
    )
    weights = {"roi_head.mask_head.x": torch.ones(1), "backbone.conv1.weight": torch.ones(1)}
    assert identify(weights) == "Mask R-CNN with another backbone"
    # Scalars instead of weights must not break the message.
    assert "DINO" in identify(
        {
            "bbox_head.label_embedding.weight": torch.tensor(1.0),
            "bbox_head.cls_branches.0.weight": torch.tensor(1.0),
        }
    )
