"""The OpenMMLab libraries: versions, and problems of the installation."""

from collections.abc import Iterator
from importlib import import_module, metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec

import torch

__all__ = [
    "HOSTS",
    "compiled_mmcv_problem",
    "compiled_mmcv_spec",
    "find_problems",
    "fork_packages",
    "installed_version",
    "missing_host_message",
    "torchvision_problem",
]

# Import name -> (names of the distributions, forks last; requirement of the tested version).
HOSTS = {
    "mmengine": (("mmengine", "onedl-mmengine"), "mmengine==0.10.7"),
    "mmcv": (("mmcv", "mmcv-lite", "onedl-mmcv"), "mmcv-lite==2.1.0"),
    "mmdet": (("mmdet", "onedl-mmdetection"), "mmdet==3.3.0"),
    "mmseg": (("mmsegmentation", "onedl-mmsegmentation"), "mmsegmentation==1.2.2"),
    "mmpretrain": (("mmpretrain", "onedl-mmpretrain"), "mmpretrain==1.2.0"),
    "mmdet3d": (("mmdet3d",), "mmdet3d==1.4.0"),
}
# They raise an AssertionError on import.
_REFUSE_MMCV_2_2 = {"mmdet": "3.3", "mmseg": "1.2", "mmdet3d": "1.4"}
_REINSTALL_MMCV = "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0"


def installed_version(host: str) -> str | None:
    """Version of an installed host, or ``None``; the host is not imported."""
    versions = (_version(distribution) for distribution in HOSTS[host][0])
    return next((version for version in versions if version is not None), None)


def fork_packages() -> dict[str, str]:
    """Hosts whose distribution and import name differ, if they are installed as a fork.

    mmengine reads configs such as ``mmseg::...`` from the distribution that its table
    ``MODULE2PACKAGE`` names, and from a module of that name if there is no such distribution.
    """
    return {
        host: host
        for host, ((official, *forks), _) in HOSTS.items()
        if official != host and _version(official) is None and any(map(_version, forks))
    }


def missing_host_message(host: str) -> str:
    """One line that says how to install a missing host, and the extra of this package for it."""
    extra = host if host in ("mmdet", "mmseg", "mmpretrain", "mmdet3d") else "mim"
    return f"{host} is not installed: pip install {HOSTS[host][1]}, or 'dcnv4_mm[{extra}]'"


def find_problems() -> list[str]:
    """Problems of the installed libraries: one line each, with a command that solves it.

    A host that is not installed is no problem. Imports torchvision, and mmcv's compiled operators
    if there are any.
    """
    return list(_problems())


def _problems() -> Iterator[str]:
    mmcv = installed_version("mmcv")
    for names, requirement in HOSTS.values():
        installed = [name for name in names if _version(name)]
        if len(installed) > 1:
            yield (
                f"{' and '.join(installed)} are installed in one folder: pip uninstall -y "
                f"{' '.join(installed)} && pip install {requirement}"
            )
    for host, version in _REFUSE_MMCV_2_2.items():
        installed = installed_version(host)
        if mmcv and installed and installed.startswith(version) and _release(mmcv) >= (2, 2):
            yield f"{host} {installed} needs mmcv below 2.2, got {mmcv}: {_REINSTALL_MMCV}"
    if mmcv:
        problem = compiled_mmcv_problem() if compiled_mmcv_spec() else torchvision_problem()
        if problem:
            yield problem
    transformers, mmpretrain = _version("transformers"), installed_version("mmpretrain")
    if transformers and mmpretrain == "1.2.0" and _release(transformers) >= (5,):
        yield (
            f"transformers {transformers} breaks mmpretrain 1.2.0, and with it the import of "
            "mmdet: pip install 'transformers<5', or uninstall one of the two"
        )
    if installed_version("mmengine") and find_spec("pkg_resources") is None:
        yield "mmengine needs pkg_resources, which setuptools 82 lacks: pip install 'setuptools<81'"


def compiled_mmcv_spec() -> ModuleSpec | None:
    """Import spec of mmcv's compiled module, or ``None``; mmcv is not imported."""
    mmcv = find_spec("mmcv")
    return mmcv and PathFinder.find_spec("mmcv._ext", mmcv.submodule_search_locations)


def compiled_mmcv_problem() -> str | None:
    """Why the compiled module of mmcv does not load, or ``None`` if it does."""
    try:
        import_module("mmcv._ext")
    except Exception as error:
        return (
            f"mmcv's compiled operators do not load with torch {torch.__version__} "
            f"({_first_line(error)}): {_REINSTALL_MMCV}"
        )
    return None


def torchvision_problem() -> str | None:
    """Why torchvision cannot serve mmcv's operators, or ``None`` if it can; imports it."""
    # torchvision 0.15 belongs to torch 2.0, 0.29 to 2.14, and so on.
    fitting = f"0.{_release(torch.__version__)[1] + 15}"
    command = f"pip install 'torchvision=={fitting}.*', from the same index as torch"
    version = _version("torchvision")
    if version is None:
        return f"torchvision is not installed: {command}"
    try:
        import_module("torchvision")
        torch.ops.torchvision.nms  # noqa: B018  (raises if the kernels were not loaded)
    except Exception as error:
        return (
            f"torchvision {version} is not built for torch {torch.__version__} "
            f"({_first_line(error)}): {command}"
        )
    if torch.version.cuda and not torch._C._dispatch_has_kernel_for_dispatch_key(
        "torchvision::nms", "CUDA"
    ):
        return (
            f"torchvision {version} has no CUDA kernels, torch {torch.__version__} has: {command}"
        )
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """Major and minor version, as (2, 14) for 2.14.0a0+cu130."""
    return tuple(int(number) for number in version.split(".")[:2])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
