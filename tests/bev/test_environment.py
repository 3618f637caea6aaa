"""What the three-dimensional models ask of an installation."""

import importlib

import pytest
from torch import nn

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from helpers import ROOT
from mmdet3d.registry import MODELS
from mmdet3d.utils import register_all_modules
from mmengine.config import Config


@pytest.mark.parametrize(
    "name",
    [
        "mmdet3d.evaluation",
        "mmdet3d.datasets",
        "nuscenes.eval.detection.evaluate",
        "lyft_dataset_sdk.lyftdataset",
        "numba",
        "pandas",
    ],
)
def test_what_is_needed_can_be_imported(name):
    """Together, beside a numpy that the devkits' metadata refuses."""
    importlib.import_module(name)


def test_synchronized_norms_are_for_gpus():
    """Two processes on processors could not use them; the configs for those have none."""
    register_all_modules(init_default_scope=True)
    configs = sorted((ROOT / "configs" / "bevformerv2").glob("*_1xb*nus-3d.py"))
    assert len(configs) == 3
    for path in configs:
        model = MODELS.build(Config.fromfile(path).model)
        assert not any(isinstance(part, nn.SyncBatchNorm) for part in model.modules()), path
