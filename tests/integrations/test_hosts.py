"""Problems of the installed libraries: one line each, with a command that solves it."""

from importlib import metadata

import pytest
import torch

from dcnv4_mm.integrations import _hosts

GOOD = {
    "mmengine": "0.10.7",
    "mmcv-lite": "2.1.0",
    "mmdet": "3.3.0",
    "mmpretrain": "1.2.0",
    "torchvision": "0.29.1",
}
REINSTALL = "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0"


@pytest.fixture
def problems(monkeypatch):
    """Finds the problems of an environment with supported versions, except for the given ones."""

    def find(changes=None, error=None, compiled=None, **without):
        versions = {**GOOD, **(changes or {})}

        def version(name):
            if versions.get(name) is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        def import_module(name):
            if error is not None:
                raise error

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(_hosts, "import_module", import_module)
        monkeypatch.setattr(_hosts, "compiled_mmcv_spec", lambda: compiled)
        monkeypatch.setattr(_hosts, "find_spec", lambda name: object())
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
        namespace = type("Namespace", (), {"nms": None})
        monkeypatch.setattr(torch.ops, "torchvision", namespace, raising=False)
        for name, value in without.items():
            monkeypatch.setattr(_hosts, name, value)
        return _hosts.find_problems()

    return find


def test_a_good_environment_has_none(problems):
    assert problems() == []


def test_an_environment_without_hosts_has_none(problems):
    assert problems(dict.fromkeys(GOOD)) == []


@pytest.mark.parametrize("distribution", ["mmcv", "mmcv-lite"])
def test_mmcv_2_2_beside_mmdet_3_3(problems, distribution):
    changes = {"mmcv-lite": None, distribution: "2.2.0"}
    assert problems(changes) == [f"mmdet 3.3.0 needs mmcv below 2.2, got 2.2.0: {REINSTALL}"]


def test_mmcv_2_2_beside_a_host_that_takes_it(problems):
    assert problems({"mmcv-lite": "2.2.0", "mmdet": "3.5.1"}) == []


@pytest.mark.parametrize(
    ("changes", "names", "requirement"),
    [
        ({"mmcv": "2.1.0"}, "mmcv mmcv-lite", "mmcv-lite==2.1.0"),
        ({"onedl-mmdetection": "3.5.1"}, "mmdet onedl-mmdetection", "mmdet==3.3.0"),
    ],
)
def test_two_distributions_of_one_host(problems, changes, names, requirement):
    (problem,) = problems(changes)
    assert f"pip uninstall -y {names} && pip install {requirement}" in problem


def test_forks_are_found(problems):
    changes = {"mmengine": None, "onedl-mmengine": "0.10.12"}
    assert problems({**changes, "mmdet": None, "onedl-mmdetection": "3.5.1"}) == []
    assert _hosts.installed_version("mmdet") == "3.5.1"


def test_configs_of_forks_are_found_by_import_name(problems):
    """The distribution of mmseg is mmsegmentation, in whose absence mmengine imports the name."""
    changes = {"mmsegmentation": None, "onedl-mmsegmentation": "1.4.2", "mmcv-lite": None}
    assert problems({**changes, "mmcv": "2.1.0"}) == []
    assert _hosts.fork_packages() == {"mmseg": "mmseg"}


def test_no_torchvision(problems):
    (problem,) = problems({"torchvision": None})
    assert problem.startswith("torchvision is not installed: pip install 'torchvision==0.29.*'")


def test_torchvision_of_another_torch(problems):
    (problem,) = problems(error=RuntimeError("operator torchvision::nms does not exist\nmore"))
    assert problem.startswith(
        "torchvision 0.29.1 is not built for torch 2.14.1+cu130 (RuntimeError: operator "
        "torchvision::nms does not exist): pip install 'torchvision==0.29.*'"
    )


def test_torchvision_without_cuda_beside_a_torch_with_it(problems, monkeypatch):
    problems()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *args: False)
    (problem,) = _hosts.find_problems()
    assert problem.startswith("torchvision 0.29.1 has no CUDA kernels, torch 2.14.1+cu130 has: pip")


def test_compiled_mmcv_of_another_torch(problems):
    (problem,) = problems(
        {"mmcv": "2.1.0", "mmcv-lite": None, "torchvision": None},
        error=ImportError("_ext.so: undefined symbol: _ZN2at"),
        compiled=object(),
    )
    assert problem == (
        "mmcv's compiled operators do not load with torch 2.14.1+cu130 (ImportError: _ext.so: "
        f"undefined symbol: _ZN2at): {REINSTALL}"
    )


def test_compiled_mmcv_needs_no_torchvision(problems):
    changes = {"mmcv": "2.1.0", "mmcv-lite": None, "torchvision": None}
    assert problems(changes, compiled=object()) == []


def test_transformers_5_beside_mmpretrain(problems):
    (problem,) = problems({"transformers": "5.23.0"})
    assert "transformers 5.23.0 breaks mmpretrain 1.2.0" in problem
    assert "pip install 'transformers<5'" in problem
    assert problems({"transformers": "4.57.1"}) == []
    assert problems({"transformers": "5.23.0", "mmpretrain": None}) == []


def test_setuptools_without_pkg_resources(problems):
    (problem,) = problems(find_spec=lambda name: None)
    assert problem.endswith("pip install 'setuptools<81'")


def test_a_missing_host_is_named_with_its_requirement():
    message = _hosts.missing_host_message("mmcv")
    assert message.startswith("mmcv is not installed: pip install mmcv-lite==2.1.0")
    assert "dcnv4_mm[mim]" in message
    assert "dcnv4_mm[mmseg]" in _hosts.missing_host_message("mmseg")
