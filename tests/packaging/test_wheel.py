"""Content of the distributions, and their use with few other packages installed."""

import json
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

pytestmark = pytest.mark.mim

LIBRARY = "dcnv4_mm/lib/libdcnv4_mm_cpu.so"
SCHEMA_LIBRARY = "dcnv4_mm/lib/libdcnv4_mm_schemas.so"
# The last is there where the build finds CUDA and a torch that has it.
LIBRARIES = {LIBRARY, SCHEMA_LIBRARY, "dcnv4_mm/lib/libdcnv4_mm_cuda.so"}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

TORCH_ALONE = """
import sys, torch
from dcnv4_mm.ops.functional import backend_info, dcnv4
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.backbones import FlashInternImage

value = torch.randn(2, 6, 5, 32, requires_grad=True)
offset_mask = torch.randn(2, 6, 5, 56, requires_grad=True)
dcnv4(value, offset_mask, groups=2).sum().backward()
assert value.grad.abs().sum() > 0 and offset_mask.grad.abs().sum() > 0
assert DCNv4(32, groups=2)(value.reshape(2, 30, 32), shape=(6, 5)).shape == (2, 30, 32)
maps = FlashInternImage("nano")(torch.randn(1, 3, 64, 64))
assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]
assert not {"mmengine", "mmcv", "numpy"} & set(sys.modules)
print("SERVED BY", backend_info()["dcnv4"]["cpu"])
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
print("CPU KERNEL", has_kernel("dcnv4_mm::dcnv4_forward", "CPU"))
"""


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_serves_every_python_of_one_platform(wheel):
    assert re.fullmatch(r"dcnv4_mm-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    assert {LIBRARY, SCHEMA_LIBRARY} <= names_in(wheel)


def test_release_wheel_promises_what_its_libraries_hold(release_wheel, run, tmp_path):
    """Its tag names the oldest glibc that has all symbols that the libraries ask for."""
    tag = re.fullmatch(r"dcnv4_mm-[\d.]+-py3-none-(manylinux_2_(\d+)_\w+)\.whl", release_wheel.name)
    audited = run(sys.executable, "-m", "auditwheel", "show", "--json", release_wheel, cwd=tmp_path)
    assert json.loads(audited)["sym_tag"] == tag[1]
    libraries = LIBRARIES if shutil.which("nvcc") else {LIBRARY}
    assert libraries <= names_in(release_wheel)
    with zipfile.ZipFile(release_wheel) as archive:
        paths = [archive.extract(name, tmp_path) for name in libraries]
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", *paths], text=True)
    assert max(map(int, re.findall(r"@GLIBC_2\.(\d+)", symbols))) <= int(tag[2])


def test_wheel_holds_the_package_and_what_mim_looks_for(wheel):
    names = {name for name in names_in(wheel) if ".dist-info/" not in name} - LIBRARIES
    python = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("dcnv4_mm/**/*.py")}
    for_mim = [ROOT / "model-index.yml", ROOT / "dataset-index.yml"]
    for_mim += [p for folder in ("configs", "tools") for p in ROOT.glob(f"{folder}/**/*")]
    mim = {
        f"dcnv4_mm/.mim/{path.relative_to(ROOT).as_posix()}"
        for path in for_mim
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == python | mim
    # mim looks for the scripts here too, and in another order for training than for testing.
    assert not (ROOT / "dcnv4_mm" / "tools").exists()


def test_names_let_mim_find_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["dcnv4_mm"]
        metadata = archive.read(f"{info}/METADATA").decode()
        assert f"{info}/entry_points.txt" not in archive.namelist()
    assert "\nName: dcnv4_mm\n" in metadata
    assert "\nRequires-Dist: torch>=2.10\n" in metadata
    assert not re.search(r"Requires-Dist: mm\w+(?!.*extra)", metadata)


def test_file_names_of_configs_are_unique_in_the_package(wheel):
    files = [name.rsplit("/", 1)[-1] for name in names_in(wheel)]
    configs = [p.name for p in ROOT.glob("configs/**/*.py") if "_base_" not in p.parts]
    assert configs
    assert [name for name in configs if files.count(name) > 1] == []


@pytest.mark.parametrize("name", [LIBRARY, SCHEMA_LIBRARY])
def test_library_needs_only_the_stable_interface_of_torch(name, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(name, tmp_path)
    undefined = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    system = r"\w+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+"
    weak = "_ITM_deregisterTMCloneTable|_ITM_registerTMCloneTable|__gmon_start__"
    allowed = re.compile(rf"aoti_torch_\w+|torch_\w+|{system}|{weak}")
    symbols = [line.split()[-1] for line in undefined.splitlines()]
    assert [symbol for symbol in symbols if not allowed.fullmatch(symbol)] == []
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    dynamic = subprocess.check_output(["readelf", "-d", library], text=True)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


@pytest.mark.parametrize("kind", ["wheel", "release_wheel"])
def test_wheel_works_with_torch_alone(kind, request, make_environment, run, tmp_path):
    python = make_environment("torch")
    path = request.getfixturevalue(kind)
    run(*PIP, f"--python={python}", "install", "--no-deps", path, cwd=tmp_path)
    printed = run(python, "-c", TORCH_ALONE, cwd=tmp_path)
    assert re.search("SERVED BY compiled.*\nCPU KERNEL True", printed)


def test_without_torch_a_pure_wheel_is_built_and_says_so(pure_wheel, wheel):
    path, printed = pure_wheel
    assert path.name.endswith("-py3-none-any.whl")
    assert names_in(path) == names_in(wheel) - LIBRARIES
    lines = [line for line in printed.splitlines() if "pure-Python build" in line]
    assert len(lines) == 1
    assert "torch is not importable" in lines[0]


def test_pure_wheel_works_with_torch_alone(pure_wheel, make_environment, run, tmp_path):
    python = make_environment("torch")
    run(*PIP, f"--python={python}", "install", "--no-deps", pure_wheel[0], cwd=tmp_path)
    printed = run(python, "-c", TORCH_ALONE, cwd=tmp_path)
    assert "SERVED BY reference" in printed
    assert "not part of this installation" in printed


def test_editable_install_links_what_mim_looks_for(
    pure_wheel, sdist, make_environment, run, tmp_path
):
    """A wheel that is built from the same folder afterwards holds files."""
    shutil.unpack_archive(sdist, tmp_path)
    (clone,) = (path for path in tmp_path.glob("dcnv4_mm-*") if path.is_dir())
    assert not (clone / "dcnv4_mm" / ".mim").exists()
    python = make_environment("setuptools")
    pip, flags = (*PIP, f"--python={python}"), ("--no-deps", "--no-build-isolation")
    for _ in range(2):
        run(*pip, "install", *flags, "-e", clone, cwd=tmp_path, DCNV4_MM_NO_EXT="1")
    links = {path.name: path.resolve() for path in (clone / "dcnv4_mm" / ".mim").iterdir()}
    names = ("configs", "tools", "model-index.yml", "dataset-index.yml")
    assert links == {name: clone / name for name in names}
    found = "import dcnv4_mm; print(dcnv4_mm.__file__)"
    assert run(python, "-c", found, cwd="/").strip() == str(clone / "dcnv4_mm" / "__init__.py")

    bytecode = clone / "tools" / "misc" / "__pycache__"
    bytecode.mkdir()
    bytecode.joinpath("left.pyc").touch()
    run(*pip, "wheel", *flags, clone, cwd=tmp_path, DCNV4_MM_NO_EXT="1")
    (built,) = tmp_path.glob("*.whl")
    assert names_in(built) == names_in(pure_wheel[0])
    with zipfile.ZipFile(built) as archive:
        assert not any(stat.S_ISLNK(file.external_attr >> 16) for file in archive.infolist())


def test_absent_kernels_can_be_an_error(sdist, make_environment, run, tmp_path):
    python = make_environment("setuptools")
    printed = run(
        *(*PIP, f"--python={python}", "wheel", "--no-deps", "--no-build-isolation", sdist),
        cwd=tmp_path,
        expect=1,
        DCNV4_MM_REQUIRE_EXT="1",
    )
    assert "DCNV4_MM_REQUIRE_EXT=1 is set, but the kernels cannot be built: torch is not" in printed
    assert not list(tmp_path.glob("*.whl"))


def test_failing_compiler_is_an_error_that_names_the_way_out(sdist, run, tmp_path):
    wheel_command = (*PIP, "wheel", "--no-deps", "--no-build-isolation", sdist)
    printed = run(*wheel_command, cwd=tmp_path, expect=1, CXX="/no/such/compiler")
    assert "error: the C++ compiler /no/such/compiler is not installed" in printed
    assert "set DCNV4_MM_NO_EXT=1 to install without kernels" in printed
    run(*wheel_command, cwd=tmp_path, CXX="/no/such/compiler", DCNV4_MM_NO_EXT="1")
    assert list(tmp_path.glob("*-py3-none-any.whl"))
