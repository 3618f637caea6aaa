"""Safe reading of info files: pickles of plain data and numpy arrays, without running code."""

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.fileio import get

__all__ = ["load_pickle"]


def load_pickle(path: str | Path, backend_args: dict | None = None) -> Any:
    """Reads a pickle of plain Python data, numpy arrays and numpy scalars.

    Args:
        path: The file.
        backend_args: As in mmengine's ``load``.

    Returns:
        The content of the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or holds anything else; nothing of that is run.
    """
    data = get(str(path), backend_args)
    try:
        return _Reader(io.BytesIO(data)).load()
    # A damaged file can fail in any way.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, or not a file of plain data and arrays ({error}): create it again"
        ) from error


class _Reader(pickle.Unpickler):
    """Finds nothing but the stand-ins below, by the names of what they replace."""

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get(f"{module.replace('numpy.core.', 'numpy._core.')}.{name}")
        if found is None:
            raise ValueError(f"{module}.{name} could run code; nothing of it was run")
        if isinstance(found, (str, type)):
            return found
        # A new function: a pickle can set attributes of what it finds.
        return lambda *arguments: found(*arguments)


class _Dtype:
    """A dtype of numbers, bool or str. numpy's own can be set to a state that breaks numpy."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[biufcUS]\d+", code):
            raise ValueError(f"numpy's type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        _version, order, *details = state
        if any(details[:3]) or order not in tuple("<>|="):
            raise ValueError(f"numpy's type with the state {state!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array that takes its state from a pickle whose dtype is checked."""

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        version, shape, dtype, fortran_order, data = state
        super().__setstate__((version, shape, dtype.dtype, fortran_order, data))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickled as numpy's own.
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _reconstruct(*_: Any) -> np.ndarray:
    # numpy's function would make an array of any class; its state follows.
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _frombuffer(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    # How protocol 2 writes bytes.
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode(encoding)


_KNOWN: dict[str, Any] = {
    "_codecs.encode": _encode,
    "builtins.bytes": lambda: b"",
    "__builtin__.bytes": lambda: b"",
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _Dtype,
    # Only passed to the next.
    "numpy.ndarray": "ndarray",
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _frombuffer,
}
