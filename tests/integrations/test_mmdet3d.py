"""BEVFormerV2's parts as a config names them, and what those see who lack mmdet3d."""

import subprocess
import sys

import pytest
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS

from dcnv4_mm.integrations import _mmdet3d
from dcnv4_mm.registry import MODELS as OURS


@pytest.mark.mmdet3d
def test_every_name_leads_to_its_class():
    from importlib import import_module

    roots = {"model": MODELS, "dataset": DATASETS, "metric": METRICS, "transform": TRANSFORMS}
    for registry, names in _mmdet3d._CLASSES.items():
        for name, module in names.items():
            assert roots[registry.name].get(f"dcnv4_mm.{name}").__name__ == name
            cls = getattr(import_module(f"dcnv4_mm.bev.{module}"), name)
            assert isinstance(cls, type)


def test_without_mmdet3d_the_pip_line_is_named(monkeypatch):
    monkeypatch.setattr(_mmdet3d, "installed_version", lambda host: None)
    with pytest.raises(ImportError, match=r"pip install mmdet3d==1\.4\.0"):
        OURS.get("BEVFormerV2")()


def test_looking_up_another_class_does_not_import_mmdet3d():
    code = (
        "from mmengine.registry import MODELS; MODELS.get('dcnv4_mm.LN2d'); import sys; "
        "assert 'mmdet3d' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
