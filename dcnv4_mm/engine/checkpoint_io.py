"""Safe readers of checkpoints for mmengine, and the conversion of released names on loading.

mmengine 0.10.7 calls ``torch.load`` as torch < 2.6 had it: a file of its own runner, which holds
logs and scores, is refused today, and a file that it downloads is run like a program. The readers
here load weights only, yet restore those logs and scores; :func:`dcnv4_mm.engine.install` puts them
into mmengine.
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
from torch import Tensor, nn

from dcnv4_mm.checkpoints import convert
from dcnv4_mm.checkpoints.families import CLASSIFIER
from dcnv4_mm.checkpoints.files import INERT, Record, read_file
from dcnv4_mm.checkpoints.flash_intern_image import has_released_names
from dcnv4_mm.checkpoints.loading import fit, select_entry, unwrap
from dcnv4_mm.engine.downloads import check_download, download

__all__ = [
    "convert_on_load",
    "load_checkpoint",
    "load_from_http",
    "load_from_local",
    "rename_classifier",
]


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Reads a checkpoint without running anything in it.

    Args:
        filename: The file.
        map_location: As in ``torch.load``.

    Returns:
        What was saved, with numpy's scalars and arrays and mmengine's logs restored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of another kind, or holds code or unknown classes.
    """
    checkpoint = read_file(filename, map_location)
    try:
        return _restored(checkpoint)
    # What a file says of an object can be wrong in any way.
    except Exception as error:
        raise ValueError(
            f"{filename} holds a log or score that cannot be read: {error!r}"
        ) from error


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Downloads a checkpoint to torch's cache, unless it is there, and reads it.

    Args:
        filename: The address.
        map_location: As in ``torch.load``.

    Returns:
        As :func:`load_from_local`.

    Raises:
        ConnectionError: The download failed.
        ValueError: The file is not the one that its host states, has changed since it was first
            used, or see :func:`load_from_local`.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(filename).path).name
    try:
        # One process of each machine; the others wait.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            if not path.exists():
                print_log(f"Downloading {filename} to {path}", logger="current")
            download(filename, path)
    except OSError as error:
        raise ConnectionError(
            f"{filename} could not be downloaded ({error}): download it elsewhere and put it at "
            f"{path}, or give its path instead of the address"
        ) from error
    finally:
        barrier()
    check_download(path)
    return load_from_local(str(path), map_location)


def load_checkpoint(source: str, map_location: Any = "cpu") -> Any:
    """Reads a checkpoint safely, whether or not :func:`dcnv4_mm.engine.install` was called.

    Args:
        source: A file, an http address, or a name of mmengine's such as ``torchvision://resnet50``.
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


def convert_on_load(module: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Renames released names below ``prefix`` to those of a module, in place.

    A module calls it in ``_load_from_state_dict``, so that released weights load by any route.

    Args:
        module: The backbone, or a whole model of a family with names of its own.
        state_dict: State dict of the model around it; unchanged if it has no released names.
        prefix: What stands before the module's names.

    Raises:
        ValueError: The state dict has released names, but does not fit the module.
    """
    if not has_released_names(state_dict, prefix):
        return
    released = {
        name.removeprefix(prefix): state_dict[name]
        for name in list(state_dict)
        if name.startswith(prefix)
    }
    weights, report = fit(module, released)
    for name in released:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: tensor for name, tensor in weights.items()})
    print_log(f"Released names of {prefix or type(module).__name__}: {report}", logger="current")


def rename_classifier(state_dict: dict[str, Any], prefix: str) -> None:
    """Makes a released classification file the state dict of mmpretrain's classifier, in place.

    That classifier asks its backbone to do so whenever it is loaded.

    Args:
        state_dict: What is loaded, a whole file or a state dict; unchanged if it has no released
            names.
        prefix: What stands before the classifier's names.

    Raises:
        ValueError: There are no weights in it.
    """
    names = [name for name in state_dict if name.startswith(prefix)]
    inner = {name.removeprefix(prefix): state_dict[name] for name in names}
    entry, weights = select_entry(inner, classifier=True)
    weights = unwrap(weights)
    if not has_released_names(weights):
        return
    for name in names:
        del state_dict[name]
    renamed = convert(weights, CLASSIFIER.rules)
    state_dict.update({prefix + name: tensor for name, tensor in renamed.items()})
    source = f"the entry {entry!r}" if entry else "the file itself"
    print_log(f"Released classifier: {len(renamed)} tensors, from {source}", logger="current")


def _restored(part: Any) -> Any:
    """Makes real objects of the records in a checkpoint; containers are changed in place."""
    if isinstance(part, Record):
        if part.name in INERT:
            return part
        restore = _RESTORE.get(part.name)
        if restore is None:
            raise ValueError(f"unexpected {part.name}")
        return restore(part)
    if isinstance(part, dict):
        # Keys too: mmdet3d's infos name a class by one of numpy's texts.
        restored = [(_restored(key), _restored(value)) for key, value in part.items()]
        part.clear()
        # Not update(), which in a Counter adds up.
        for key, value in restored:
            part[key] = value
    elif isinstance(part, list):
        part[:] = map(_restored, part)
    elif type(part) is tuple:
        return tuple(map(_restored, part))
    return part


def _dtype(record: Record) -> np.dtype:
    """Makes a dtype of numbers or text. A pickled dtype's own state could break numpy."""
    code, (_version, byte_order, *details) = record.arguments[0], record.state
    if not re.fullmatch(r"[biufcUS]\d+", code) or any(details[:3]) or byte_order not in "<>|=":
        raise ValueError(f"numpy's type {code!r} {record.state!r}")
    return np.dtype(byte_order + code)


def _scalar(record: Record) -> np.generic:
    dtype, data = record.arguments
    return np.frombuffer(data, _dtype(dtype), count=1)[0]


def _array(record: Record) -> np.ndarray:
    _version, shape, dtype, fortran_order, data = record.state
    array = np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if fortran_order else "C")
    return array.copy(order="K")


def _history(record: Record) -> HistoryBuffer:
    """Makes a log of its numbers; its methods are those of the class, whatever the file says."""
    return HistoryBuffer(
        log_history=_restored(record.state["_log_history"]),
        count_history=_restored(record.state["_count_history"]),
        max_length=record.state["max_length"],
    )


_RESTORE: dict[str, Callable[[Record], Any]] = {
    "mmengine.logging.history_buffer.HistoryBuffer": _history,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
}
