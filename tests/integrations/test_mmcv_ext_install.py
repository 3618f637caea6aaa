"""Installation of mmcv's operators: order of imports, compiled mmcv, missing libraries."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("mmcv", reason="mmcv is not installed")

from dcnv4_mm.integrations import _hosts, mmcv_ext

pytestmark = [
    pytest.mark.mmcv,
    pytest.mark.skipif(not mmcv_ext.install(), reason="mmcv is compiled"),
]


def test_collected_environment_names_torchvision():
    from mmcv.utils import collect_env

    assert "torchvision" in collect_env()["MMCV Compiler"]


def python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_mmcv_may_be_imported_before():
    code = """
import mmcv.cnn
from dcnv4_mm.integrations import install
install()
import mmdet.models
from mmcv.cnn.bricks.transformer import MultiScaleDeformableAttention
print(MultiScaleDeformableAttention.__module__)
"""
    assert python(code)[-1] == "mmcv.ops.multi_scale_deform_attn"


def test_installing_imports_nothing():
    code = """
import sys
from dcnv4_mm.integrations import mmcv_ext
assert mmcv_ext.install()
print(sorted({"mmengine", "mmcv", "torchvision", "mmcv._ext"} & set(sys.modules)))
"""
    assert python(code) == ["[]"]


def test_installing_twice_and_after_a_failed_import():
    code = """
import sys
try:
    import mmcv.ops
except ImportError as error:
    print(error)
from dcnv4_mm.integrations import mmcv_ext
before = len(sys.meta_path)
assert mmcv_ext.install() and mmcv_ext.install()
assert len(sys.meta_path) == before + 1
import mmcv.ops
assert mmcv_ext.install()
import torch
print(mmcv.ops.nms(torch.tensor([[0.0, 0, 2, 2]]), torch.ones(1), 0.5)[1].tolist())
"""
    assert python(code) == ["No module named 'mmcv._ext'", "[0]"]


USE_COMPILED = """
from dcnv4_mm.integrations import mmcv_ext
print(mmcv_ext.install(), mmcv_ext.serving())
try:
    import mmcv._ext
    print(mmcv._ext.__file__)
except ImportError as error:
    print(error)
"""


@pytest.fixture
def compiled_mmcv(tmp_path):
    """A folder for PYTHONPATH with an mmcv that has a module in place of a compiled one."""
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").touch()
    return package / "_ext.py"


def use_compiled(ext):
    paths = (str(ext.parents[1]), os.environ.get("PYTHONPATH", ""))
    return python(USE_COMPILED, PYTHONPATH=os.pathsep.join(paths))


def test_compiled_mmcv_is_left_alone(compiled_mmcv):
    compiled_mmcv.touch()
    serving, used = use_compiled(compiled_mmcv)
    assert serving.startswith("False compiled mmcv")
    assert used == str(compiled_mmcv)


def test_compiled_mmcv_of_another_torch_is_named_and_left_alone(compiled_mmcv):
    compiled_mmcv.write_text("raise ImportError('undefined symbol: _ZN2at')")
    serving, used = use_compiled(compiled_mmcv)
    assert serving.startswith(
        f"False mmcv's compiled operators do not load with torch {torch.__version__}"
    )
    assert "undefined symbol" in serving
    assert serving.endswith("pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0")
    assert used == "undefined symbol: _ZN2at"


def test_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setattr(mmcv_ext, "torchvision_problem", lambda: "torchvision is not installed")
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    with pytest.raises(ImportError, match="mmcv-lite's operators need torchvision"):
        __import__("mmcv._ext")
    assert mmcv_ext.serving().endswith("lacks its operators: torchvision is not installed")


def test_without_mmcv_nothing_is_installed(monkeypatch):
    monkeypatch.setattr(mmcv_ext, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    assert not mmcv_ext.install()
    assert mmcv_ext.serving() == _hosts.missing_host_message("mmcv")


def test_serving_names_versions():
    assert mmcv_ext.serving() == (
        f"mmcv-lite {_hosts.installed_version('mmcv')} with torchvision "
        f"{sys.modules['torchvision'].__version__} and dcnv4_mm kernels"
    )
