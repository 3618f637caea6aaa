"""Loading of the kernel libraries: stale ones in a source tree, and what is said without any."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import ROOT

from dcnv4_mm.ops import _extension

HEADER, DEFINITIONS = "csrc/dcnv4/params.h", "dcnv4_mm/ops/dcnv4/registration.py"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source tree in which a library has just been built; it is not really loaded."""
    for path in (HEADER, DEFINITIONS):
        tmp_path.joinpath(path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, tmp_path / path)
    folder = tmp_path / "dcnv4_mm" / "lib"
    folder.mkdir()
    folder.joinpath("libdcnv4_mm_cpu.so").touch()
    record_sources = runpy.run_path(str(ROOT / "csrc" / "compilers.py"))["record_sources"]
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("kernels.d").write_text(f"kernels.o: {HEADER} \\\n /usr/include/stdio.h\n")
    record_sources(folder / "libdcnv4_mm_cpu.sources", ["kernels.o"])
    monkeypatch.setattr(_extension, "_ROOT", tmp_path)
    monkeypatch.setattr(_extension, "_FOLDER", folder)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.delenv("DCNV4_MM_DISABLE_EXT", raising=False)
    _extension.changed_sources.cache_clear()
    yield tmp_path
    _extension.changed_sources.cache_clear()


def load():
    """What loading says: the reason why not, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = _extension.load_library.__wrapped__("cpu")
    return reason, [str(warning.message) for warning in caught]


def test_library_of_the_present_sources_is_loaded_silently(tree):
    # A checkout changes times, not contents.
    os.utime(tree / HEADER, (2e9, 2e9))
    assert load() == (None, [])


@pytest.mark.parametrize("change", [lambda path: path.write_text("other"), os.remove])
def test_library_of_older_kernels_is_loaded_with_a_warning(tree, change):
    change(tree / HEADER)
    reason, (warning,) = load()
    assert reason is None
    assert HEADER in warning
    assert "run `make install`" in warning


def test_library_of_other_operator_definitions_is_not_loaded(tree):
    """Its arguments would be misread."""
    with open(tree / DEFINITIONS, "a") as file:
        file.write("# changed\n")
    reason, warned = load()
    assert "other operator definitions: run `make install`" in reason
    assert warned == []


def test_library_of_unknown_sources_is_not_loaded(tree):
    os.remove(tree / "dcnv4_mm" / "lib" / "libdcnv4_mm_cpu.sources")
    assert "other operator definitions" in load()[0]


def test_installed_wheel_has_nothing_to_compare(tree):
    shutil.rmtree(tree / "csrc")
    os.remove(tree / "dcnv4_mm" / "lib" / "libdcnv4_mm_cpu.sources")
    assert load() == (None, [])


def warned_without_kernels(device_type):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _extension._warn_without_kernels.__wrapped__(device_type)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(("device_type", "needs"), [("cpu", "g++"), ("cuda", "nvcc")])
def test_missing_kernels_are_told_with_the_remedy(device_type, needs, monkeypatch):
    monkeypatch.setattr(_extension, "load_library", lambda _: "it is not there")
    (warning,) = warned_without_kernels(device_type)
    assert re.search(f"{device_type} tensors.*it is not there.*{re.escape(needs)}", warning)
    assert "pip install --no-build-isolation" in warning


def test_nothing_is_told_where_no_kernels_are_expected(monkeypatch):
    monkeypatch.setattr(_extension, "load_library", lambda _: "it is not there")
    assert warned_without_kernels("mps") == []
    monkeypatch.setattr(sys, "platform", "darwin")
    assert warned_without_kernels("cpu") == []
    monkeypatch.undo()
    monkeypatch.setenv("DCNV4_MM_DISABLE_EXT", "1")
    monkeypatch.setattr(_extension, "load_library", _extension.load_library.__wrapped__)
    assert warned_without_kernels("cpu") == []


WITHOUT_KERNELS = """
import warnings
import torch
from torch._subclasses import FakeTensorMode
from dcnv4_mm.ops.functional import dcnv4

def call(device):
    make = lambda channels: torch.ones(1, 2, 2, channels, device=device)
    return dcnv4(make(4), make(27), groups=1)

class Module(torch.nn.Module):
    def forward(self, value, offset_mask):
        return dcnv4(value, offset_mask, groups=1)

tensors = torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 27)
compiled = torch.compile(Module(), fullgraph=True, backend="eager")
with warnings.catch_warnings():
    warnings.simplefilter("error")
    call("meta")
    with FakeTensorMode():
        call("cuda" if torch.version.cuda else "cpu")
    torch.export.export(Module(), tensors)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    outputs = [compiled(*tensors), call("cpu"), call("cpu")]
assert all(torch.equal(output, outputs[0]) for output in outputs)
print([str(w.message) for w in caught if "dcnv4_mm" in str(w.message)])
"""


def test_package_without_kernels_warns_at_the_first_call_that_computes(tmp_path):
    """Not where graphs are traced, and once in compiled and in eager calls."""
    ignored = shutil.ignore_patterns("lib", ".mim", "__pycache__")
    shutil.copytree(ROOT / "dcnv4_mm", tmp_path / "dcnv4_mm", ignore=ignored)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("DCNV4_MM_DISABLE_EXT", None)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout
    assert said.count("plain PyTorch serves cpu tensors") == 1
    assert "libdcnv4_mm_cpu.so is not part of this installation" in said
