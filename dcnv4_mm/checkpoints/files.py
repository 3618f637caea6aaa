"""Safe reading of checkpoint files from untrusted sources, and atomic writing."""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dcnv4_mm.atomic_files import write_file

__all__ = ["INERT", "InertObject", "naming_file", "read_file", "save_file"]


class InertObject:
    """Replaces an object in a file that is neither a tensor nor plain data.

    It has the object's data without its behaviour: whatever a pickle asks to be called, only inert
    objects are made.

    Attributes:
        name: Qualified name of the class or function in the file.
        arguments: The arguments that the pickle would call it with.
        state: The state that the pickle would set.
    """

    name: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "InertObject":
        obj = super().__new__(cls)
        obj.arguments = arguments
        obj.state = None
        return obj

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Settings that trainers save beside the weights; they stay inert.
INERT = frozenset(
    [
        "argparse.Namespace",
        "mmengine.config.config.Config",
        "mmengine.config.config.ConfigDict",
        *(
            f"{module}.{name}"
            # The second since Python 3.13.
            for module in ("pathlib", "pathlib._local")
            for name in ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
        ),
    ]
)
# Classes and functions in checkpoints of mmengine and of the original project: logs, scores and
# settings. Each is read as an InertObject, also `getattr`, by which pickle refers to the methods
# that a HistoryBuffer lists.
_ACCEPTED = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    *INERT,
)
_REPLACEMENTS: dict[str, Any] = {
    name: type("InertObject", (InertObject,), {"name": name}) for name in _ACCEPTED
}
# A subclass of dict that only adds attribute access.
_REPLACEMENTS["yacs.config.CfgNode"] = OrderedDict
# Pickle's representation of the data of an array without elements.
_REPLACEMENTS["builtins.bytes"] = lambda: b""


def read_file(path: str | Path, map_location: Any = "cpu") -> Any:
    """Reads a file of ``torch.save`` or of safetensors from an untrusted source.

    Args:
        path: The file; its format is recognised by its content.
        map_location: As in ``torch.load``; for safetensors a device.

    Returns:
        The content of the file. Tensors and plain Python data are themselves; objects of numpy and
        mmengine are :class:`InertObject`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, has another format, or holds code or unknown classes; or
            it is a safetensors file, and safetensors is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: check the path, or download it first")
    with path.open("rb") as file:
        start = file.read(512)
    _check_start(path, start)
    if _is_safetensors(path, start):
        return _read_safetensors(path, map_location)
    _check_sums(path)
    try:
        with _replacements():
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to run the file.
        raise ValueError(_unpickling_message(path, str(error))) from None
    # A damaged file can fail in any way.
    except Exception as error:
        raise ValueError(_damaged(path, error)) from error


def save_file(checkpoint: Any, path: str | Path) -> None:
    """Writes a checkpoint as ``torch.save`` does, but completely or not at all.

    Args:
        checkpoint: The content.
        path: The file; its folder must exist.

    Raises:
        OSError: The file cannot be written; an earlier file is unchanged.
    """
    # Through memory: torch reports a failed write as an error of its own zip file.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_file(path, buffer.getbuffer())


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Adds the name of a file to a ``ValueError`` about its content that does not name it.

    Args:
        path: The file.

    Raises:
        ValueError: The block's own, with the name of the file.
    """
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _is_safetensors(path: Path, start: bytes) -> bool:
    """The format: the header's length in 8 bytes, and a header in JSON."""
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + length <= path.stat().st_size


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(
            f"{path} is a safetensors file, which needs safetensors: pip install safetensors"
        ) from None
    device = map_location if isinstance(map_location, (str, torch.device)) else "cpu"
    try:
        weights: dict[str, Tensor] = load_file(path, device=str(device))
    except Exception as error:
        raise ValueError(_damaged(path, error)) from error
    return weights


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"{path} is damaged or not a checkpoint ({path.stat().st_size} bytes): download or copy it "
        f"again ({type(error).__name__}: {error})"
    )


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise ValueError(f"{path} is empty: download or copy it again")
    if start.lstrip().startswith(b"<"):
        raise ValueError(
            f"{path} is a web page, not a checkpoint: use the URL of the file itself (on "
            "huggingface.co it has /resolve/ in it, not /blob/)"
        )
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not a checkpoint: run `git lfs pull`")


def _check_sums(path: Path) -> None:
    """Compares the checksums of the archive, which torch does not: bits may have flipped."""
    # The format before torch 1.6 has no checksums.
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            # torch never compresses; a small file could expand to any size.
            compressed = [e.filename for e in file.infolist() if e.compress_type]
            damaged = None if compressed else file.testzip()
    # A damaged file can fail in any way.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged: download or copy it again ({type(error).__name__}: {error})"
        ) from error
    if compressed:
        raise ValueError(f"{path} is not a checkpoint: {compressed[0]} in it is compressed")
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: the checksum of {damaged} is wrong; download or copy it again"
        )


def _unpickling_message(path: Path, message: str) -> str:
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused or "reduce" in message or "create new object" in message:
        what = f" ({refused[1]})" if refused else ""
        return (
            f"{path} holds more than weights{what}, which could run code when loaded: nothing of "
            "it was run. Ask its author for a file that holds tensors alone"
        )
    detail = re.search(r"error:\s*(.+)", message)
    return (
        f"{path} is damaged or not a checkpoint ({path.stat().st_size} bytes): download or copy it "
        f"again ({detail[1] if detail else 'it cannot be unpickled'})"
    )


@contextmanager
def _replacements() -> Iterator[None]:
    """Makes ``torch.load`` read the accepted names as their replacements.

    Other names that the user has allowed stay allowed.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(
        [entry for entry in allowed if _name_of(entry) not in _REPLACEMENTS]
        + [(replacement, name) for name, replacement in _REPLACEMENTS.items()]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _name_of(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
