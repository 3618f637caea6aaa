"""The classes that need a host, as a config names them, and the error where it is missing."""

import subprocess
import sys

import pytest
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS

from dcnv4_mm.integrations import _host_classes
from dcnv4_mm.integrations._hosts import installed_version
from dcnv4_mm.registry import MODELS as OURS


@pytest.mark.mmdet3d
def test_every_name_leads_to_its_class():
    from importlib import import_module

    roots = {"model": MODELS, "dataset": DATASETS, "metric": METRICS, "transform": TRANSFORMS}
    for registry, modules in _host_classes.CLASSES.items():
        for (host, module), names in modules.items():
            for name in names:
                assert roots[registry.name].get(f"dcnv4_mm.{name}").__name__ == name
                if installed_version(host) is not None:
                    cls = getattr(import_module(f"dcnv4_mm.{module}"), name)
                    assert isinstance(cls, type)


def test_without_mmdet3d_the_pip_line_is_named(monkeypatch):
    monkeypatch.setattr(_host_classes, "installed_version", lambda host: None)
    with pytest.raises(ImportError, match=r"pip install mmdet3d==1\.4\.0"):
        OURS.get("BEVFormerV2")()


def test_looking_up_another_class_imports_no_host():
    code = (
        "from mmengine.registry import MODELS; MODELS.get('dcnv4_mm.LN2d'); import sys; "
        "assert not {'mmdet', 'mmseg', 'mmdet3d'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
