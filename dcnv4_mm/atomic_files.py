"""Files and folders that are written completely or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "write_file"]


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """Replaces a file or an empty folder by what the ``with`` block writes, at its end.

    If the block or the replacement fails, ``target`` is unchanged and the rest is removed. A killed
    process leaves ``.<name>.unfinished`` beside the target, which the next write removes. There
    must be one writer at a time.

    Args:
        target: The file or folder; its parent must exist.

    Yields:
        Path of the file or folder to write; it does not exist yet.

    Raises:
        OSError: ``target`` cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as path:
        ...         _ = path.write_text("content")
        ...     os.listdir(folder)
        ['a.txt']
    """
    # The target of a symbolic link, as without renaming.
    target = Path(target).resolve()
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        _remove(unfinished)
        yield unfinished
        for path in (*sorted(unfinished.rglob("*")), unfinished):
            _flush(path)
        _replace(unfinished, target)
    except BaseException as error:
        with suppress(OSError):
            _remove(unfinished)
        if isinstance(error, OSError) and error.filename in (None, str(unfinished)):
            # That of a failed write has no name.
            raise OSError(error.errno, error.strerror or str(error), str(target)) from error
        raise
    # The entry of the folder; not every file system can flush it.
    with suppress(OSError):
        _flush(target.parent)


def write_file(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file with :func:`replacing`.

    Args:
        path: The file; its folder must exist.
        content: Its content.

    Raises:
        OSError: The file cannot be written; an earlier file is unchanged.
    """
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(source: Path, target: Path) -> None:
    written = source.stat().st_ino
    try:
        source.replace(target)
    except OSError:
        # A network file system repeats a request whose reply was lost, and the second one fails.
        if source.exists() or not target.exists() or target.stat().st_ino != written:
            raise
