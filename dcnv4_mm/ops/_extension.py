"""Finds and loads the compiled kernel libraries, and remembers why one is not there."""

import os
from functools import cache
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent / "lib"
# A library built for this first torch serves every later one (torch's stable ABI).
_OLDEST_TORCH = (2, 10)


def library_path(name: str) -> Path:
    """Where a library of the package is, if it is part of this installation."""
    return _FOLDER / f"libdcnv4_mm_{name}.so"


@cache
def load_library(device_type: str) -> str | None:
    """Loads the kernels of one device type, once per process.

    The schemas must be defined before: importing an operator's ``registration`` module does it.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.

    Returns:
        ``None`` when the kernels are loaded, otherwise the reason why they are not.
    """
    if os.environ.get("DCNV4_MM_DISABLE_EXT") == "1":
        return "DCNV4_MM_DISABLE_EXT=1 is set"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        return f"torch {torch.__version__} is older than 2.10, the first with a stable ABI"
    if device_type == "cuda" and torch.version.cuda is None:
        return "this torch is a CPU-only build"
    path = library_path(device_type)
    if not path.exists():
        return f"{path.name} is not part of this installation"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None
