"""Decisions of setup.py before compilation; a script stands in for nvcc."""

import importlib.metadata
import platform
import re
import runpy
import sys
from pathlib import Path

import pytest
import setuptools
from helpers import ROOT

# What `nvcc --list-gpu-arch` of some toolkits names.
KNOWN = {
    "11.8": "35 37 50 52 53 60 61 62 70 72 75 80 86 87 89 90",
    "12.6": "50 52 53 60 61 62 70 72 75 80 86 87 89 90",
    "13.0": "75 80 86 87 88 89 90 100 110 103 120 121",
}


def run_setup():
    """The names that setup.py defines."""
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture(autouse=True)
def _(monkeypatch):
    """Nothing is built, and the user has set nothing."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    for name in ("NO_EXT", "REQUIRE_EXT", "NO_CUDA", "REQUIRE_CUDA", "CUDA_ARCHS"):
        monkeypatch.delenv(f"DCNV4_MM_{name}", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.fixture
def nvcc(request, tmp_path, monkeypatch):
    """The functions of csrc/nvcc.py, with an nvcc of a given version."""
    version = request.param
    lines = "\n".join(f"compute_{arch}" for arch in KNOWN[version].split())
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\ncase $1 in --list-gpu-arch) echo "{lines}";; '
        f'--version) echo "Cuda compilation tools, release {version}, V{version}.85";; '
        "*) exit 1;; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return runpy.run_path(str(ROOT / "csrc" / "nvcc.py"))


def chosen(nvcc):
    return nvcc["choose_archs"](nvcc["find_nvcc"]())


def remarks(nvcc, torch_cuda):
    return "\n".join(nvcc["remarks"](nvcc["find_nvcc"](), torch_cuda))


@pytest.mark.parametrize(
    ("nvcc", "machine", "code", "left_out"),
    [
        ("13.0", "x86_64", [75, 80, 86, 89, 90, 100, 120], []),
        ("13.0", "aarch64", [75, 80, 86, 87, 89, 90, 100, 110, 120], []),
        ("12.6", "x86_64", [75, 80, 86, 89, 90], [100, 120]),
        ("11.8", "x86_64", [75, 80, 86, 89, 90], [100, 120]),
    ],
    indirect=["nvcc"],
)
def test_by_default_all_supported_gpus_that_nvcc_knows(nvcc, machine, code, left_out, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert chosen(nvcc) == (code, [code[-1]], left_out)
    assert chosen(nvcc).flags()[-2:] == [
        f"-gencode=arch=compute_{code[-1]},code=sm_{code[-1]}",
        f"-gencode=arch=compute_{code[-1]},code=compute_{code[-1]}",
    ]


@pytest.mark.parametrize("nvcc", ["12.6"], indirect=True)
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CUDA_ARCHS": "90"}, ([90], [90], [])),
        ({"CUDA_ARCHS": "80;75"}, ([75, 80], [80], [])),
        ({"CUDA_ARCHS": "8.0+PTX 9.0a"}, ([80, 90], [80, 90], [])),
        ({"CUDA_ARCHS": " "}, ([75, 80, 86, 89, 90], [90], [100, 120])),
        ({"LIST": "8.0;9.0+PTX"}, ([80, 90], [90], [])),
        # As containers set it, for every package and more GPUs than a toolkit knows.
        ({"LIST": "5.2 7.0 8.0 8.6 9.0 10.0 12.0+PTX"}, ([80, 86, 90], [90], [52, 70, 100, 120])),
        ({"LIST": "Hopper", "CUDA_ARCHS": "86"}, ([86], [86], [])),
    ],
)
def test_the_user_chooses_architectures(nvcc, variables, expected, monkeypatch):
    names = {"CUDA_ARCHS": "DCNV4_MM_CUDA_ARCHS", "LIST": "TORCH_CUDA_ARCH_LIST"}
    for name, text in variables.items():
        monkeypatch.setenv(names[name], text)
    assert chosen(nvcc) == expected


@pytest.mark.parametrize("nvcc", ["12.6"], indirect=True)
@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("DCNV4_MM_CUDA_ARCHS", "90;120", r"nvcc 12\.6 does not compile for 120\. .*CUDA_HOME"),
        ("DCNV4_MM_CUDA_ARCHS", "70", r"for 70\. Set DCNV4_MM_CUDA_ARCHS to some of 75;80"),
        ("DCNV4_MM_CUDA_ARCHS", "all", r'expected .*"80;90", got \'all\''),
        ("TORCH_CUDA_ARCH_LIST", "12.0", "does not compile for 120"),
        ("TORCH_CUDA_ARCH_LIST", "Ampere", "got 'Ampere'.*DCNV4_MM_CUDA_ARCHS takes precedence"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error_with_the_remedy(
    nvcc, variable, text, message, monkeypatch
):
    monkeypatch.setenv(variable, text)
    with pytest.raises(SystemExit, match=message) as error:
        chosen(nvcc)
    assert str(error.value).startswith(f"error: {variable}: ")


@pytest.mark.parametrize("nvcc", ["13.0"], indirect=True)
def test_nvcc_that_does_not_answer_is_an_error(nvcc, monkeypatch):
    Path(nvcc["find_nvcc"]()).write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(SystemExit, match=r"--list-gpu-arch .*CUDA_HOME.*NO_CUDA=1.*broken"):
        chosen(nvcc)


@pytest.mark.parametrize(
    ("nvcc", "torch_cuda", "expected", "absent"),
    [
        ("13.0", "13.0", "by nvcc 13.0 for 75;80;86;89;90;100;120, and PTX of 120", "left|driver"),
        ("13.0", None, "by nvcc 13.0", "driver"),
        # The runtime that is linked in asks for a newer driver than torch does.
        ("13.0", "12.8", "warning: .* need a driver for CUDA 13 .*torch.* 12.8", "left out"),
        # The other way round any driver that serves torch will do.
        ("12.6", "13.0", "left out: 100;120.*nvcc 12.6.*newer toolkit in CUDA_HOME", "driver"),
    ],
    indirect=["nvcc"],
)
def test_the_build_says_what_the_toolkit_means(nvcc, torch_cuda, expected, absent):
    text = remarks(nvcc, torch_cuda)
    assert re.search(expected, text)
    assert not re.search(absent, text)


def test_old_python_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"needs Python >= 3\.10, this is Python"):
        run_setup()


def test_old_setuptools_is_an_error_with_the_command(monkeypatch):
    monkeypatch.setattr(setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit, match=r'65\.5\.0 is installed: .*pip install "setuptools>=77'):
        run_setup()


def test_old_torch_is_an_error_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.1+cu128")
    with pytest.raises(SystemExit, match=r'torch 2\.9\.1\+cu128 .*pip install "torch>=2\.10"'):
        run_setup()
    monkeypatch.setenv("DCNV4_MM_NO_EXT", "1")
    assert run_setup()["REASON"] == "DCNV4_MM_NO_EXT=1 is set"


def test_absent_compiler_is_an_error_with_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    build = run_setup()["build_cpu_library"]
    with pytest.raises(SystemExit, match=r"no-such-compiler .*apt-get install g\+\+.*NO_EXT=1"):
        build(tmp_path / "library.so", tmp_path)
