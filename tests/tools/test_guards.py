"""The hooks that train.py and test.py add: whatever a config lists, nothing is loaded in part."""

import re

import pytest

pytest.importorskip("mmengine", reason="mmengine is not installed")
from helpers import ROOT
from mmengine.config import Config

import dcnv4_mm.registry  # noqa: F401
from dcnv4_mm.cli.guards import add_guards

STRICT = "dcnv4_mm.StrictLoadHook"
DATA = "dcnv4_mm.CheckDataHook"
CLASSES = "mmdet.NumClassCheckHook"


def guard(**config):
    """The hooks of a config to which the guards were added."""
    cfg = Config({"default_scope": "mmdet", **config})
    add_guards(cfg)
    return cfg.custom_hooks


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [STRICT, DATA, CLASSES]),
        ({"custom_hooks": None}, [STRICT, DATA, CLASSES]),
        ({"custom_hooks": [{"type": "OtherHook"}]}, ["OtherHook", STRICT, DATA, CLASSES]),
        ({"custom_hooks": [{"type": "NumClassCheckHook"}]}, ["NumClassCheckHook", STRICT, DATA]),
        ({"default_scope": "mmseg"}, [STRICT, DATA]),
        ({"strict_load": False}, [DATA, CLASSES]),
        ({"strict_load": False, "custom_hooks": [{"type": STRICT}]}, [DATA, CLASSES]),
        ({"check_data": False, "custom_hooks": [{"type": "NumClassCheckHook"}]}, [STRICT]),
    ],
)
def test_guards_are_added_unless_turned_off(config, expected):
    assert [hook["type"] for hook in guard(**config)] == expected


def test_a_guard_of_the_config_keeps_its_arguments():
    strict = {"type": "StrictLoadHook", "allow": ["head."]}
    assert guard(check_data=False, custom_hooks=[strict]) == [strict]


# Those that write the list themselves, or inherit from a host; all others inherit one of these.
CONFIGS = [
    path
    for path in sorted(ROOT.glob("configs/**/*.py"))
    if re.search(r"^custom_hooks|^_base_.*::", path.read_text(), re.M)
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_our_configs_have_the_guards_themselves(path):
    """With the hosts' own tools nothing adds them."""
    cfg = Config.fromfile(path)
    types = {hook["type"].rsplit(".", 1)[-1] for hook in cfg.custom_hooks}
    assert {"StrictLoadHook", "CheckDataHook"} <= types
    assert ("NumClassCheckHook" in types) == (cfg.default_scope == "mmdet")
