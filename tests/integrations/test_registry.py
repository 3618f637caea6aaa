"""Classes of this package as a config names them."""

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS, init_default_scope

from dcnv4_mm import backbones
from dcnv4_mm.integrations import _hosts
from dcnv4_mm.layers import LN2d


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
