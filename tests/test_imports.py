"""What may import what: the rings of the architecture, in a fresh interpreter."""

import subprocess
import sys

import pytest
from helpers import ROOT

RING_1 = ["dcnv4_mm", "dcnv4_mm.ops.functional", "dcnv4_mm.layers", "dcnv4_mm.backbones"]
RING_1 += ["dcnv4_mm.checkpoints", "dcnv4_mm.env", "dcnv4_mm.bev.geometry"]
RING_1 += ["dcnv4_mm.export.onnx", "dcnv4_mm.export.tracing"]

# Imports of any OpenMMLab library fail, as where none is installed.
BLOCK_HOSTS = """
import sys
class NoHosts:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "mmdet3d"}:
            raise ModuleNotFoundError(f"blocked: {name}")
sys.meta_path.insert(0, NoHosts())
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("module", RING_1)
def test_ring_1_needs_torch_alone(module):
    result = run(f"{BLOCK_HOSTS}\nimport {module}, torch\nassert not torch.cuda.is_initialized()")
    assert result.returncode == 0, result.stderr


def test_the_block_works():
    result = run(f"{BLOCK_HOSTS}\nimport dcnv4_mm.registry")
    assert "blocked: mmengine" in result.stderr


MISSING = """
import importlib, sys
sys.modules[sys.argv[1]] = None
try:
    importlib.import_module(sys.argv[2])
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("host", "module", "extra"),
    [
        ("mmengine", "dcnv4_mm.engine", "mim"),
        ("mmengine", "dcnv4_mm.optim", "mim"),
        ("mmengine", "dcnv4_mm.bev.inferencer", "mmdet3d"),
        ("mmengine", "dcnv4_mm.registry", "mim"),
        ("timm", "dcnv4_mm.timm", "timm"),
        ("transformers", "dcnv4_mm.transformers", "transformers"),
    ],
)
def test_a_missing_host_is_named_with_the_extra(host, module, extra):
    command = [sys.executable, "-c", MISSING, host, module]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    assert host in printed
    assert f"dcnv4_mm[{extra}]" in printed


def test_the_package_itself_imports_nothing_heavy():
    result = run("import dcnv4_mm, sys; assert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_hosts_are_imported_only_when_a_class_is_looked_up():
    result = run("import dcnv4_mm.registry, sys; assert 'mmdet' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_modules_beside_scripts_and_tests_have_names_of_their_own():
    """Tests run scripts in their own process, where a name is imported once."""

    def importable(folder):
        return {
            path.relative_to(folder).parts[0].removesuffix(".py")
            for path in folder.rglob("*.py")
            if not path.name.startswith(("test_", "conftest"))
        }

    scripts = {path.parent for name in ("dev", "tools") for path in (ROOT / name).rglob("*.py")}
    scripts = {path.stem for folder in scripts for path in folder.glob("*.py")}
    scripts |= importable(ROOT / "benchmarks")
    assert not scripts & importable(ROOT / "tests")
