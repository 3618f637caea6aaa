"""Safe checkpoint loaders for mmengine.

mmengine 0.10.7 calls ``torch.load`` with the defaults of torch < 2.6: today's torch refuses a file
of mmengine's own runner, which holds logs and scores, and a file that mmengine downloads can run
code. The loaders here use ``weights_only`` and restore those logs and scores;
:func:`dcnv4_mm.engine.install` registers them with mmengine.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader

from dcnv4_mm.checkpoints.bevformerv2 import convert_released_boxes
from dcnv4_mm.checkpoints.downloads import check_download, download
from dcnv4_mm.checkpoints.files import INERT, InertObject, naming_file, read_file
from dcnv4_mm.checkpoints.loading import WEIGHT_ENTRIES, find_entries
from dcnv4_mm.engine.released import remember_source

__all__ = [
    "load_checkpoint",
    "load_from_http",
    "load_from_local",
]


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Loads a checkpoint without running any code in it.

    Args:
        filename: The file.
        map_location: As in ``torch.load``.

    Returns:
        The content of the file, with numpy's scalars and arrays and mmengine's logs restored; the
        boxes of a released BEVFormerV2 are converted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of another kind, or holds code or unknown classes.
    """
    checkpoint = read_file(filename, map_location)
    try:
        restored = _restored(checkpoint)
    # An object's description in a file can be wrong in any way.
    except Exception as error:
        raise ValueError(
            f"{filename} holds a log or score that cannot be read: {error!r}"
        ) from error
    _check_content(filename, restored)
    with naming_file(filename):
        restored = convert_released_boxes(restored)
    remember_source(filename, restored)
    return restored


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Downloads a checkpoint to torch's cache, unless it is there, and loads it.

    Args:
        filename: The URL.
        map_location: As in ``torch.load``.

    Returns:
        As :func:`load_from_local`.

    Raises:
        ConnectionError: The download failed.
        ValueError: The file's size or hash is not the one that its host states, the file has
            changed since it was first used, or as for :func:`load_from_local`.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(filename).path).name
    try:
        # One process per machine; the others wait.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            if not path.exists():
                print_log(f"Downloading {filename} to {path}", logger="current")
            download(filename, path)
    except OSError as error:
        raise ConnectionError(
            f"{filename} could not be downloaded ({error}): download it elsewhere and put it at "
            f"{path}, or give its path instead of the URL"
        ) from error
    finally:
        barrier()
    check_download(path)
    return load_from_local(str(path), map_location)


def load_checkpoint(source: str, map_location: Any = "cpu") -> Any:
    """Loads a checkpoint safely, whether or not :func:`dcnv4_mm.engine.install` was called.

    Args:
        source: A file, an http URL, or one of mmengine's schemes, as ``torchvision://resnet50``.
        map_location: As in ``torch.load``.

    Returns:
        As :func:`load_from_local`.

    Raises:
        FileNotFoundError: There is no such file.
        ConnectionError: The download failed.
        ValueError: The file is damaged, of another kind, or holds code or unknown classes.
    """
    if source.startswith(("http://", "https://")):
        return load_from_http(source, map_location)
    if "://" not in source:
        return load_from_local(source, map_location)
    return CheckpointLoader.load_checkpoint(source, map_location)


def _check_content(filename: str, checkpoint: Any) -> None:
    """Refuses a file without weights, of which some hosts would load nothing and go on."""
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{filename}: expected a dict of weights, got {type(checkpoint).__name__}")
    entries = (checkpoint.get(name) for name in WEIGHT_ENTRIES)
    bare = any(isinstance(x, torch.Tensor) for x in checkpoint.values())
    if not bare and not any(isinstance(part, dict) for part in entries):
        held = find_entries(checkpoint)
        if not held:
            raise ValueError(f"{filename} holds no weights, only {', '.join(map(str, checkpoint))}")
        raise ValueError(
            f"{filename} holds tensors under {', '.join(held)}: expected weights as the "
            f"dict itself or under one of {', '.join(WEIGHT_ENTRIES)}; save a file with the "
            "weights under 'state_dict'"
        )
    weights = checkpoint.get("state_dict")
    weights = weights if isinstance(weights, dict) else checkpoint
    if wrong := [key for key in weights if not isinstance(key, str)]:
        raise ValueError(f"{filename}: expected str as keys of weights, got {wrong[0]!r}")


def _restored(part: Any) -> Any:
    """Restores the inert objects in a checkpoint; containers are changed in place."""
    if isinstance(part, InertObject):
        if part.name in INERT:
            return part
        restore = _RESTORE.get(part.name)
        if restore is None:
            raise ValueError(f"unexpected {part.name}")
        return restore(part)
    if isinstance(part, dict):
        # Keys too: mmdet3d's info files name a class by a numpy str.
        restored = [(_restored(key), _restored(value)) for key, value in part.items()]
        part.clear()
        # Not update(), which adds the values in a Counter.
        for key, value in restored:
            part[key] = value
    elif isinstance(part, list):
        part[:] = map(_restored, part)
    elif type(part) is tuple:
        return tuple(map(_restored, part))
    return part


def _dtype(obj: InertObject) -> np.dtype:
    """Restores a dtype of numbers or str. A pickled dtype's own state could break numpy."""
    code, (_version, byte_order, *details) = obj.arguments[0], obj.state
    if not re.fullmatch(r"[biufcUS]\d+", code) or any(details[:3]) or byte_order not in "<>|=":
        raise ValueError(f"numpy's type {code!r} {obj.state!r}")
    return np.dtype(byte_order + code)


def _scalar(obj: InertObject) -> np.generic:
    dtype, data = obj.arguments
    return np.frombuffer(data, _dtype(dtype), count=1)[0]


def _array(obj: InertObject) -> np.ndarray:
    _version, shape, dtype, fortran_order, data = obj.state
    array = np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if fortran_order else "C")
    return array.copy(order="K")


def _history(obj: InertObject) -> HistoryBuffer:
    """Restores a log's values; its methods are the class's, whatever the file contains."""
    return HistoryBuffer(
        log_history=_restored(obj.state["_log_history"]),
        count_history=_restored(obj.state["_count_history"]),
        max_length=obj.state["max_length"],
    )


_RESTORE: dict[str, Callable[[InertObject], Any]] = {
    "mmengine.logging.history_buffer.HistoryBuffer": _history,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
}
