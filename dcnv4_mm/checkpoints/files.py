"""Reads weight files of unknown origin: nothing in them is ever run."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

__all__ = ["INERT", "Record", "read_file"]


class Record:
    """Stands for an object in a file that is neither a tensor nor plain data.

    It has the object's parts without its behaviour: whatever a file asks to be called, only
    records are made.

    Attributes:
        name: Full name of the class or function in the file.
        arguments: What the file wanted it to be called with.
        state: What the file wanted the result to be filled with.
    """

    name: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "Record":
        record = super().__new__(cls)
        record.arguments = arguments
        record.state = None
        return record

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Settings that trainers save beside the weights; they stay records.
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
# What stands in checkpoints of mmengine and of the original project beside tensors: logs, scores
# and a trainer's settings. Every name is read as a Record, hence also `getattr`, by which pickle
# refers to the methods that a HistoryBuffer lists.
_RECORDED = (
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
_STAND_INS: dict[str, Any] = {name: type("Record", (Record,), {"name": name}) for name in _RECORDED}
# A subclass of dict that only adds attribute access.
_STAND_INS["yacs.config.CfgNode"] = OrderedDict
# How pickle writes the data of an array without elements.
_STAND_INS["builtins.bytes"] = lambda: b""


def read_file(path: str | Path, map_location: Any = "cpu") -> Any:
    """Reads a file written by ``torch.save``, of which nothing is trusted.

    Args:
        path: The file.
        map_location: As in ``torch.load``.

    Returns:
        What was saved. Tensors and plain Python data are themselves; numpy's and mmengine's
        objects are :class:`Record`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is of another kind, or holds code or unknown classes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: check the path, or download it first")
    with path.open("rb") as file:
        _check_start(path, file.read(512))
    _check_sums(path)
    try:
        with _stand_ins():
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own text advises to run the file.
        raise ValueError(_unpickling_message(path, str(error))) from None
    # A damaged file can make the reader fail in any way.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint ({path.stat().st_size} bytes): download or "
            f"copy it again ({type(error).__name__}: {error})"
        ) from error


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise ValueError(f"{path} is empty: download or copy it again")
    if start.lstrip().startswith(b"<"):
        raise ValueError(
            f"{path} is a web page, not a checkpoint: use the address of the file itself (on "
            "huggingface.co it has /resolve/ in it, not /blob/)"
        )
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not a checkpoint: run `git lfs pull`")


def _check_sums(path: Path) -> None:
    """Torch itself does not look: it would load weights with a few wrong bits."""
    # The format before torch 1.6 has no sums.
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    # A damaged file can make the reader fail in any way.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged: download or copy it again ({type(error).__name__}: {error})"
        ) from error
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged: the check sum of {damaged} is wrong; download or copy it again"
        )


def _unpickling_message(path: Path, message: str) -> str:
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused or "reduce" in message or "create new object" in message:
        what = f" ({refused[1]})" if refused else ""
        return (
            f"{path} holds more than weights{what}, which could run code when loaded: nothing of "
            "it was run. Ask where the file comes from for one that holds tensors alone"
        )
    detail = re.search(r"error:\s*(.+)", message)
    return (
        f"{path} is damaged or not a checkpoint ({path.stat().st_size} bytes): download or copy it "
        f"again ({detail[1] if detail else 'it cannot be unpickled'})"
    )


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Lets ``torch.load`` meet the names above, and read them as their stand-ins.

    What the user has allowed stays allowed, but for these names.
    """
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(
        [entry for entry in allowed if _name_of(entry) not in _STAND_INS]
        + [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    )
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _name_of(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
