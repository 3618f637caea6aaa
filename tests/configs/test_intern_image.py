"""The fifteen configs of InternImage have the recorded settings of the originals."""

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml
from backbones.intern_image import manifest, models, numbered
from helpers import ROOT, config_of, load_json
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from dcnv4_mm.checkpoints import to_released
from dcnv4_mm.checkpoints.loading import match_state_dict

RECORDED = load_json("internimage/models")
HUB = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/"
FOLDER = ROOT / "configs" / "internimage"
METAFILE = yaml.safe_load((FOLDER / "metafile.yml").read_text())
HOSTS = {"coco": "mmdet", "ade20k": "mmseg"}


def build(config, dataset):
    """The host's model without memory."""
    host = pytest.importorskip(HOSTS[dataset], reason=f"{HOSTS[dataset]} is not installed")
    utils, registry = (
        __import__(f"{host.__name__}.{part}", fromlist=["x"]) for part in ("utils", "registry")
    )
    utils.register_all_modules(init_default_scope=True)
    with torch.device("meta"):
        return registry.MODELS.build(copy.deepcopy(config.model))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(stem, marks=getattr(pytest.mark, HOSTS[recorded["dataset"]]))
        for stem, recorded in RECORDED.items()
    ],
)
def case(request):
    """The original's name, its recorded settings, our config and the model built from it."""
    config = Config.fromfile(config_of(request.param))
    recorded = RECORDED[request.param]
    return request.param, recorded, config, build(config, recorded["dataset"])


def test_model(case):
    _, recorded, config, model = case
    for field in ("channels", "offset_scale", "post_norm", "mlp_ratio"):
        assert getattr(model.backbone.arch, field) == recorded["backbone"][field]
    for field in ("depths", "groups"):
        assert list(getattr(model.backbone.arch, field)) == recorded["backbone"][field]
    backbone = config.model.backbone
    assert backbone.core_op == "DCNv3"
    assert backbone.layer_scale == recorded["backbone"]["layer_scale"]
    assert backbone.drop_path_rate == recorded["backbone"]["drop_path_rate"]
    assert backbone.get("with_cp", False) == recorded["backbone"]["with_cp"]
    assert list(model.backbone.out_indices) == recorded["backbone"]["out_indices"]
    assert backbone.init_cfg == {"type": "Pretrained", "checkpoint": recorded["backbone_init"]}
    if recorded["neck"] is not None:
        neck = {k: v for k, v in config.model.neck.items() if k != "norm_cfg"}
        assert neck == recorded["neck"]
        assert config.model.neck.norm_cfg is None


def test_names_shapes_and_places(case):
    stem, recorded, _, model = case
    kind = "segmentation" if recorded["dataset"] == "ade20k" else "detection"
    stem = stem.replace("_3x_", "_1x_")
    released, facts = manifest(kind, stem), models(kind)[stem]
    own = {name: list(tensor.shape) for name, tensor in to_released(model).items()}
    assert list(own.items()) == list(released.items())
    assert facts["num_parameters"] == sum(p.numel() for p in model.parameters())
    weights, report = match_state_dict(model, {"state_dict": numbered(released, facts["buffers"])})
    assert not report.dropped
    for index, tensor in enumerate(weights.values()):
        assert tensor[(0,) * tensor.dim()] == index


def test_optimizer(case):
    _, recorded, config, model = case
    expected = recorded["optimizer"]
    optimizer = config.optim_wrapper.optimizer
    for key in ("type", "lr", "weight_decay"):
        assert optimizer[key] == expected[key]
    paramwise, clip = expected["paramwise_cfg"], config.optim_wrapper.get("clip_grad")
    assert clip == recorded["grad_clip"]
    built = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = sum(recorded["backbone"]["depths"]) + 2
    assert layers == paramwise["num_layers"] + 2
    rate = paramwise["layer_decay_rate"]
    for group in built.param_groups:
        for name in (names[id(parameter)] for parameter in group["params"]):
            layer, _ = model.backbone.get_layer_depth(name, prefix="backbone.")
            # An offset_lr_scale of 0.01 reaches nothing: the originals look for other names.
            assert group["lr"] == pytest.approx(expected["lr"] * rate ** (layers - 1 - layer))


def test_schedule_and_data(case):
    stem, recorded, config, _ = case
    gpus, images = map(int, re.search(r"_(\d+)xb(\d+)-", config.filename).groups())
    assert images == config.train_dataloader.batch_size == recorded["images_per_gpu"]
    assert config.auto_scale_lr.base_batch_size == gpus * images
    schedule, warmup = recorded["lr_config"], config.param_scheduler[0]
    scale = {tuple(s.scale) for s in config.test_dataloader.dataset.pipeline if s.type == "Resize"}
    assert scale == {tuple(recorded["img_scale_test"])}
    if recorded["dataset"] == "ade20k":
        assert config.train_cfg.max_iters == recorded["runner"]["max_iters"]
        assert (warmup.warmup_iters, warmup.warmup_ratio) == (
            schedule["warmup_iters"],
            schedule["warmup_ratio"],
        )
        return
    assert config.train_cfg.max_epochs == recorded["runner"]["max_epochs"]
    steps = config.param_scheduler[1]
    assert (warmup.start_factor, warmup.end) == (schedule["warmup_ratio"], 501)
    assert list(steps.milestones) == schedule["step"]
    averaged = any(hook.type == "EMAHook" for hook in config.custom_hooks)
    assert averaged == (recorded["custom_hooks"][0]["type"] == "ExpMomentumEMAHook")
    assert averaged == (stem.startswith("cascade") and "_3x_" in stem)


def test_header_and_length(case):
    stem, _, config, _ = case
    lines = Path(config.filename).read_text().splitlines()
    assert lines[0] == f"# Reproduces {stem} of the original project."
    assert 10 <= len(lines) <= 40


def figures(published):
    if "box map" in published:
        return published["box map"], published["mask map"]
    return tuple(published["miou (ss/ms)"].split(" / "))


def test_metafile_and_readme_agree():
    readme = (FOLDER / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| ") and "[config]" in line]
    assert [m["Metadata"]["Original Config"] for m in METAFILE["Models"]] == list(RECORDED)
    for row, model in zip(rows, METAFILE["Models"], strict=True):
        stem = model["Metadata"]["Original Config"]
        recorded = RECORDED[stem]
        kind = "segmentation" if recorded["dataset"] == "ade20k" else "detection"
        facts = models(kind)[stem.replace("_3x_", "_1x_")]
        assert model["Metadata"]["Parameters"] == facts["num_parameters"]
        runner = recorded["runner"]
        assert model["Metadata"].get("Epochs") == runner.get("max_epochs")
        assert model["Metadata"].get("Iterations") == runner.get("max_iters")
        published = figures(recorded["published"])
        found = [str(v) for r in model["Results"] for v in r["Metrics"].values()]
        assert tuple(found) == published
        assert {result["Source"] for result in model["Results"]} == {"paper"}
        assert model["Weights"] == recorded["checkpoint_url"] == f"{HUB}{stem}.pth"
        assert f"| {model['Metadata']['Parameters'] / 1e6:.1f} M | {' | '.join(published)} |" in row
        assert f"[config]({model['Name']}.py)" in row
        assert f"[weights]({model['Weights']})" in row
