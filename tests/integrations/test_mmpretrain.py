"""The classifiers on mmpretrain: golden logits, released names both ways, optimizer groups."""

import copy
import gzip
import json
import logging

import pytest
import torch
from helpers import (
    DATA,
    config_of,
    images,
    load_arrays,
    manifest,
    manifest_stems,
    weights,
)

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain import get_model
from mmpretrain.registry import MODELS

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import convert, load_released, to_released
from dcnv4_mm.checkpoints.key_mappings import CLASSIFIER
from dcnv4_mm.checkpoints.loading import match_state_dict

pytestmark = pytest.mark.mmpretrain

T = "flash_intern_image_t_1k_224"
STEMS = manifest_stems("classification")
GROUPS = json.loads(gzip.decompress((DATA / "classification_param_groups.json.gz").read_bytes()))


def build(stem, device="cpu"):
    """The classifier of the config that reproduces one of the original's, and the config."""
    config = Config.fromfile(config_of(stem))
    settings = copy.deepcopy(config.model)
    settings.backbone.init_cfg = None
    settings.data_preprocessor = config.data_preprocessor
    with torch.device(device):
        return MODELS.build(settings).eval(), config


@pytest.fixture(scope="module")
def released():
    return weights(manifest("classification", T))


@pytest.fixture(scope="module")
def model(released):
    model, _ = build(T)
    load_released(model, {"model": released})
    return model


# As for the classifier in plain PyTorch: tests/backbones/test_golden.py.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("size", [(64, 96), (97, 130)])
@torch.inference_mode()
def test_golden_logits(model, size, dtype, tolerance):
    model = copy.deepcopy(model).to(dtype)
    maps = model.extract_feat(images(*size).to(dtype))
    recorded = load_arrays("cls_t")
    for name, result in (
        ("pooled_features", model.head.pre_logits(maps)),
        ("logits", model.head(maps)),
    ):
        expected = torch.from_numpy(recorded[f"t_{size[0]}x{size[1]}/{name}"])
        assert (result - expected).abs().max().item() <= tolerance, name


@pytest.mark.parametrize("stem", STEMS)
def test_names_shapes_and_order(stem):
    shapes = manifest("classification", stem)
    model, _ = build(stem, device="meta")
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(convert(shapes, CLASSIFIER.rules).items()) == list(own.items())
    assert list(shapes.items()) == [(n, list(t.shape)) for n, t in to_released(model).items()]


@pytest.mark.parametrize("stem", STEMS)
def test_every_tensor_reaches_its_own_place(stem):
    """The i-th tensor of a released file is the i-th of the model, independent of the rules."""
    model, _ = build(stem, device="meta")
    numbered = {
        name: torch.tensor(index if name.endswith("num_batches_tracked") else float(index)).expand(
            shape
        )
        for index, (name, shape) in enumerate(manifest("classification", stem).items())
    }
    filled, report = match_state_dict(model, {"model": numbered})
    assert list(filled) == list(model.state_dict())
    assert all(bool((tensor == index).all()) for index, tensor in enumerate(filled.values()))
    assert report.fits
    assert not report.dropped
    assert not report.kept


def test_the_report_says_in_one_line_which_weights_are_used(model, released):
    averaged = {name: torch.zeros_like(tensor) for name, tensor in released.items()}
    both = {"model_ema": averaged, "model": released}
    lines = str(load_released(copy.deepcopy(model), both)).splitlines()
    assert len(lines) == 1
    assert f"{len(released)} tensors loaded, from the entry 'model'" in lines[0]
    (line,) = str(load_released(copy.deepcopy(model), {"model_ema": released})).splitlines()
    assert "from the entry 'model_ema'" in line


@pytest.mark.parametrize("layout", ["released", "bare", "wrapped", "host"])
def test_mmpretrains_own_loading_takes_every_file(model, released, layout, tmp_path, caplog):
    """The way of mmpretrain's inferencers, which do not load strictly and run no hook."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in released.items()}
    files = {
        "released": {"model": released, "model_ema": zeros, "epoch": 3},
        "bare": released,
        "wrapped": {"model": {f"module.{name}": tensor for name, tensor in released.items()}},
        "host": {"state_dict": model.state_dict()},
    }
    path = tmp_path / "file.pth"
    torch.save(files[layout], path)
    with caplog.at_level(logging.INFO):
        loaded = get_model(str(config_of(T)), pretrained=str(path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_own_checkpoint_starts_a_dense_model(model):
    backbone = FlashInternImage("t", layer_scale=1.0)
    report = load_released(backbone, {"state_dict": model.state_dict()})
    assert torch.equal(backbone.patch_embed.conv1.weight, model.backbone.patch_embed.conv1.weight)
    assert {"head.head.weight", "head.conv_head.0.weight"} <= set(report.dropped)


def test_file_with_other_classes_is_refused(model, released):
    other = {**released, "head.weight": torch.zeros(7, 768), "head.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"head\.head\.weight \(\(7, 768\)"):
        load_released(model, {"model": other})


@pytest.mark.parametrize("stem", STEMS)
def test_optimizer_groups_equal_the_originals(stem):
    recorded = GROUPS[stem]
    model, config = build(stem, device="meta")
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {group["name"] for group in optimizer.param_groups} == set(recorded["groups"])
    for group in optimizer.param_groups:
        expected = recorded["groups"][group["name"]]
        ours = [names[id(parameter)] for parameter in group["params"]]
        assert ours == list(convert(dict.fromkeys(expected["params"]), CLASSIFIER.rules))
        assert group["lr"] == pytest.approx(expected["lr"], rel=1e-12)
        assert group["weight_decay"] == expected["weight_decay"]
        assert list(group["betas"]) == recorded["betas"]
        assert group["eps"] == recorded["eps"]


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem != T])
@torch.inference_mode()
def test_large_models_are_finite_at_odd_sizes(stem):
    model, _ = build(stem)
    load_released(model, {"model": weights(manifest("classification", stem))})
    for size in ((33, 47), (97, 130)):
        logits = model(images(*size))
        assert logits.shape == (1, 1000)
        assert logits.isfinite().all()
        assert logits.std() > 1e-3


@pytest.mark.parametrize("sizes", [(0, 512), (1000, 0)])
def test_head_without_classes_or_channels_is_refused(sizes):
    settings = dict(zip(("num_classes", "in_channels"), sizes, strict=True))
    with pytest.raises(ValueError, match="must be positive, got"):
        MODELS.build({"type": "dcnv4_mm.FlashInternImageHead", **settings})
