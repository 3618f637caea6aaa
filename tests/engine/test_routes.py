"""Every kind of checkpoint file by every route: the table of docs/checkpoints.md."""

import copy

import pytest
import torch
from helpers import manifest
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from dcnv4_mm.checkpoints import load_released, to_released
from dcnv4_mm.engine import install

KINDS = ["state_dict", "averaged", "bare", "wrapped", "training", "safetensors"]


@pytest.fixture
def source(make_model):
    model = make_model()
    for tensor in model.state_dict().values():
        tensor.normal_()
    return model


@pytest.fixture(params=KINDS)
def file(request, source, tmp_path):
    """A file of one kind with the source's weights."""
    released, path = to_released(source), tmp_path / "file.pth"
    zeros = {key: torch.zeros_like(tensor) for key, tensor in released.items()}
    contents = {
        "state_dict": {"meta": {"mmcv_version": "1.5.0"}, "state_dict": released},
        "averaged": {"model": zeros, "model_ema": released, "epoch": 3},
        "bare": released,
        "wrapped": {"state_dict": {f"module.{key}": t for key, t in released.items()}},
        "training": {"meta": {"epoch": 1}, "state_dict": source.state_dict(), "optimizer": {}},
    }
    if request.param == "safetensors":
        library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
        path = path.with_suffix(".safetensors")
        library.save_file(released, path)
    else:
        torch.save(contents[request.param], path)
    return str(path)


def assert_loaded(model, source):
    expected = source.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_load_released(file, source, make_model):
    model = make_model()
    load_released(model, file)
    assert_loaded(model, source)


def test_load_from_and_test(file, source, make_runner):
    hook = {"type": "dcnv4_mm.StrictLoadHook"}
    runner = make_runner(load_from=file, custom_hooks=[hook])
    runner.call_hook("before_run")
    runner.load_or_resume()
    assert_loaded(runner.model, source)


def test_init_cfg_of_the_backbone(file, source):
    arch = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 1, 1, 1)}
    init_cfg = {"type": "Pretrained", "checkpoint": file}
    config = {"type": "dcnv4_mm.FlashInternImage", "arch": arch, "init_cfg": init_cfg}
    backbone = MODELS.build(config)
    backbone.init_weights()
    assert_loaded(backbone, source.backbone)


# mmengine's `load_checkpoint` takes `model_ema` for the key of a weight, and warns; mmpretrain's
# classifiers select the weights themselves: tests/integrations/test_mmpretrain.py.
@pytest.mark.parametrize("file", [kind for kind in KINDS if kind != "averaged"], indirect=True)
def test_inferencers(file, source, make_model):
    """They call mmengine's `load_checkpoint`, which runs no hook and is not strict."""
    install()
    model = make_model()
    load_checkpoint(model, file, map_location="cpu")
    assert_loaded(model, source)


@pytest.mark.parametrize("file", ["averaged"], indirect=True)
def test_a_module_of_ours_refuses_an_entry_that_mmengine_would_skip(file):
    install()
    model = MODELS.build({"type": "dcnv4_mm.FlashInternImage", "arch": "nano"})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"model, model_ema"):
        load_checkpoint(model, file, map_location="cpu")
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_copy_of_a_model_converts_too(source, make_model):
    """As in averaging of weights; the load hook belongs to the copy then."""
    model = copy.deepcopy(make_model())
    model.load_state_dict(to_released(source))
    assert_loaded(model, source)


def test_an_inferencer_names_the_file_and_what_it_holds(make_model, tmp_path):
    """Its load hook sees the keys of the backbone alone."""
    install()
    stem = "dino_4scale_flash_internimage_s_1x_coco"
    one = torch.zeros(())
    weights = {key: one.expand(shape) for key, shape in manifest("dino", stem).items()}
    torch.save({"state_dict": weights}, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match=r"dino\.pth") as error:
        load_checkpoint(make_model(), str(tmp_path / "dino.pth"), map_location="cpu")
    assert "DINO with FlashInternImage-S, 80 classes" in str(error.value)
    assert "dino-4scale_flash-internimage-s_8xb4-12e_coco.py" in str(error.value)
