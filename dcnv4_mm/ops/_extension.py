"""Finds and loads the compiled kernel libraries, and remembers why one is not there."""

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / "dcnv4_mm" / "lib"
# A library built for this first torch serves every later one (torch's stable ABI).
_OLDEST_TORCH = (2, 10)
_DISABLED = "DCNV4_MM_DISABLE_EXT=1 is set"

_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")


def library_path(name: str) -> Path:
    """Path of a library of the package, if it is part of this installation."""
    return _FOLDER / f"libdcnv4_mm_{name}.so"


@cache
def load_library(device_type: str) -> str | None:
    """Loads the kernels of one device type, once per process.

    The schemas must be defined before: importing an operator's ``registration`` module does it.
    In a source tree, a library that was built from older sources warns. If the definitions of
    operators are among what has changed, it is not loaded, as it would misread its arguments.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.

    Returns:
        ``None`` when the kernels are loaded, otherwise the reason why they are not.
    """
    if os.environ.get("DCNV4_MM_DISABLE_EXT") == "1":
        return _DISABLED
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        return f"torch {torch.__version__} is older than 2.10, the first with a stable ABI"
    if device_type == "cuda" and torch.version.cuda is None:
        return "this torch is built without CUDA"
    path = library_path(device_type)
    if not path.exists():
        return f"{path.name} is not part of this installation"
    if changed := changed_sources(device_type):
        if any(source.endswith("registration.py") for source in changed):
            return f"{path.name} was built for other operator definitions: run `make install`"
        names = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        warnings.warn(
            f"dcnv4_mm: {path.name} was built from older sources ({names} changed): run "
            "`make install`",
            stacklevel=2,
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


@cache
def changed_sources(device_type: str) -> list[str]:
    """The files of a source tree that differ from what its library was built from.

    An installed wheel has nothing to compare. Where the library's record of its sources is
    missing, all definitions of operators count as changed.
    """
    if not _in_source_tree():
        return []
    record = library_path(device_type).with_suffix(".sources")
    lines = record.read_text().splitlines() if record.exists() else []
    built_from = {path: digest for digest, path in (line.split(maxsplit=1) for line in lines)}
    for definitions in _ROOT.glob("dcnv4_mm/ops/*/registration.py"):
        built_from.setdefault(definitions.relative_to(_ROOT).as_posix(), "")
    return [path for path, digest in built_from.items() if _digest(_ROOT / path) != digest]


def _in_source_tree() -> bool:
    return Path(_ROOT, "csrc", "dcnv4").is_dir()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "deleted"


def warns_without_kernels(
    reference: Callable[Concatenate[Tensor, _Rest], _Result],
) -> Callable[Concatenate[Tensor, _Rest], _Result]:
    """A reference implementation that warns, once per device type, where kernels should be.

    The dispatcher calls it when there is no kernel; neither tracing nor fake tensors come here.
    """

    @wraps(reference)
    def warn_and_call(first: Tensor, *args: _Rest.args, **kwargs: _Rest.kwargs) -> _Result:
        _warn_without_kernels(first.device.type)
        return reference(first, *args, **kwargs)

    return warn_and_call


@cache
def _warn_without_kernels(device_type: str) -> None:
    expected = device_type == "cuda" or (device_type == "cpu" and sys.platform == "linux")
    if not expected or (reason := load_library(device_type)) == _DISABLED:
        return
    reason = reason or "the library has none for this operator"
    warnings.warn(
        f"dcnv4_mm: plain PyTorch serves {device_type} tensors, many times slower than compiled "
        f"kernels: {reason}. {how_to_build(device_type)} "
        "(DCNV4_MM_DISABLE_EXT=1 silences this warning)",
        stacklevel=3,
    )


def how_to_build(device_type: str) -> str:
    """The command that builds the kernels of a device type."""
    name, needs = ("CUDA", "nvcc") if device_type == "cuda" else ("EXT", "g++")
    how = "-e ." if _in_source_tree() else "--force-reinstall ."
    return (
        f"With {needs} on the PATH, run in a clone of dcnv4_mm: DCNV4_MM_REQUIRE_{name}=1 "
        f"python -m pip install --no-build-isolation --no-deps {how}"
    )
