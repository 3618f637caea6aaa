"""Classes of this package as a config names them."""

import importlib.util
import sys
from importlib.machinery import PathFinder

import mmengine.registry
import pytest
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope, Registry, init_default_scope

from dcnv4_mm import backbones
from dcnv4_mm.integrations import _hosts
from dcnv4_mm.layers import LN2d
from dcnv4_mm.registry import MODELS as DCNV4_MM_MODELS


@pytest.mark.parametrize("scope", ["mmengine", "mmdet", "mmseg"])
def test_types_are_found_from_every_scope(scope):
    init_default_scope(scope)
    assert MODELS.get("dcnv4_mm.LN2d") is LN2d
    assert issubclass(MODELS.get("dcnv4_mm.FlashInternImage"), backbones.FlashInternImage)


def test_adapter_is_an_mmengine_module_with_the_same_keys():
    adapted = MODELS.build({"type": "dcnv4_mm.FlashInternImage", "arch": "nano"})
    assert isinstance(adapted, BaseModule)
    assert list(adapted.state_dict()) == list(backbones.FlashInternImage("nano").state_dict())


def test_init_weights_without_a_checkpoint_keeps_zero_offsets():
    adapted = MODELS.build({"type": "dcnv4_mm.FlashInternImage", "arch": "nano"})
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    adapted.init_weights()
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_init_weights_loads_a_checkpoint_whole(tmp_path):
    source = backbones.FlashInternImage("nano")
    torch.nn.init.normal_(source.patch_embed.conv1.weight)
    path = tmp_path / "backbone.pth"
    torch.save({"model": source.state_dict()}, path)
    init_cfg = {"type": "Pretrained", "checkpoint": str(path)}
    config = {"type": "dcnv4_mm.FlashInternImage", "arch": "nano", "init_cfg": init_cfg}
    adapted = MODELS.build(config)
    adapted.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value), name


@pytest.mark.parametrize("prefix", ["img_backbone", "img_backbone.", None])
@pytest.mark.parametrize("listed", [False, True])
def test_init_weights_from_a_part_of_a_file(tmp_path, prefix, listed):
    source = backbones.FlashInternImage("nano")
    torch.nn.init.normal_(source.patch_embed.conv1.weight)
    names = f"{prefix.rstrip('.')}." if prefix else ""
    weights = {names + name: tensor for name, tensor in source.state_dict().items()}
    if prefix:
        weights["head.x"] = torch.ones(1)
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": weights}, path)
    init_cfg = {"type": "Pretrained", "checkpoint": str(path), "prefix": prefix}
    constant = {"type": "Constant", "val": 7.0, "layer": "LayerNorm"}
    init_cfg = [init_cfg, constant] if listed else init_cfg
    config = {"type": "dcnv4_mm.FlashInternImage", "arch": "nano", "init_cfg": init_cfg}
    adapted = MODELS.build(config)
    adapted.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(adapted.state_dict()[name], value), name


def test_a_list_without_a_checkpoint_initializes():
    constant = {"type": "Constant", "val": 7.0, "layer": "LayerNorm"}
    config = {"type": "dcnv4_mm.FlashInternImage", "arch": "nano", "init_cfg": [constant]}
    adapted = MODELS.build(config)
    adapted.init_weights()
    assert any((value == 7).all() for value in adapted.state_dict().values())


def test_a_prefix_of_nothing_names_those_that_there_are(tmp_path):
    path = tmp_path / "detector.pth"
    torch.save({"state_dict": {"neck.weight": torch.zeros(1)}}, path)
    init_cfg = {"type": "Pretrained", "checkpoint": str(path), "prefix": "img_backbone"}
    config = {"type": "dcnv4_mm.FlashInternImage", "arch": "nano", "init_cfg": init_cfg}
    with pytest.raises(ValueError, match=rf"{path}.*'img_backbone\.'.*neck"):
        MODELS.build(config).init_weights()


def test_init_weights_refuses_a_file_of_another_model(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path)
    init_cfg = {"type": "Pretrained", "checkpoint": str(path)}
    config = {"type": "dcnv4_mm.FlashInternImage", "arch": "nano", "init_cfg": init_cfg}
    adapted = MODELS.build(config)
    with pytest.raises(ValueError, match="patch_embed"):
        adapted.init_weights()


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'norm_layer'"):
        MODELS.build({"type": "dcnv4_mm.FlashInternImage", "arch": "nano", "norm_layer": "LN"})


def test_a_class_of_a_missing_host_says_what_to_install(monkeypatch):
    missing = (("no-such-distribution",), "mmpretrain==1.2.0")
    monkeypatch.setitem(_hosts.HOSTS, "mmpretrain", missing)
    head = {"type": "dcnv4_mm.FlashInternImageHead", "num_classes": 2, "in_channels": 8}
    with pytest.raises(ImportError, match=r"FlashInternImageHead needs mmpretrain: .*pip install"):
        MODELS.build(head)


def types(part):
    """All types that a config names."""
    if isinstance(part, dict):
        named = {part["type"]} if isinstance(part.get("type"), str) else set()
        return named.union(*map(types, part.values()))
    return set().union(*map(types, part)) if isinstance(part, (list, tuple)) else set()


def look_up(registry, scope, name):
    try:
        with registry.switch_scope_and_registry(scope) as scoped:
            return scoped.get(name)
    except ImportError as error:
        return str(error)


@pytest.mark.parametrize("host", ["mmdet", "mmseg", "mmdet3d", "mmpretrain"])
def test_types_in_inherited_configs_are_those_of_the_host(host):
    """mmengine builds what `_base_ = "dcnv4_mm::..."` brings from registries of this scope."""
    if importlib.util.find_spec(host) is None:
        pytest.skip(f"{host} is not installed")
    configs = [Config.fromfile(path) for path in sorted(ROOT.glob("configs/[!_]*/*-t_*.py"))]
    configs += map(Config.fromfile, ROOT.glob("configs/bevformerv2/*t2_nus-3d.py"))
    names = set().union(*(types(c.to_dict()) for c in configs if c.default_scope == host))
    assert len(names) > 20
    init_default_scope(host)
    for registry in vars(mmengine.registry).values():
        # mmdet3d's registry of inferencers names a module that does not exist.
        if not isinstance(registry, Registry) or registry.name == "inferencer":
            continue
        for name in names:
            found = look_up(registry, "dcnv4_mm", name)
            assert found is look_up(registry, None, name), (registry.name, name)


@pytest.mark.parametrize(
    ("host", "config"),
    [
        ("mmdet", "dino/dino-4scale_flash-internimage-t_8xb4-12e_coco.py"),
        ("mmseg", "upernet/upernet_flash-internimage-t_8xb2-160k_ade20k-512x512.py"),
    ],
)
def test_test_time_augmentation_of_an_inherited_config_is_the_hosts(host, config, tmp_path):
    """What `test.py --tta` builds of a child by the package's name."""
    pytest.importorskip(host)
    from mmcv.transforms import Compose

    path = tmp_path / "child.py"
    path.write_text(f"_base_ = 'dcnv4_mm::{config}'\n")
    child = Config.fromfile(path)
    init_default_scope(host)
    pipeline = Compose(child.tta_pipeline)
    packing = {type(steps.transforms[-1]) for steps in pipeline.transforms[-1].subroutines}
    (kind,) = packing
    assert kind.__module__.startswith(f"{host}.")
    model = look_up(MODELS, child.tta_model.get("_scope_"), child.tta_model.type)
    assert model.__module__.startswith(f"{host}.")


def test_a_missing_host_of_an_inherited_config_is_named_with_its_extra(monkeypatch):
    for name in ("mmseg", "mmseg.registry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    # Found nowhere, as where it is not installed.
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    monkeypatch.setattr(DefaultScope, "_instance_dict", {})
    init_default_scope("mmseg")
    with pytest.raises(ImportError, match=r"mmseg.*dcnv4_mm\[mmseg\]"):
        DCNV4_MM_MODELS.get("UPerHead")
