"""Atomic checkpoint writes, and the search for the latest complete checkpoint.

mmengine's own writer leaves a truncated file under the final name when the process is killed or the
disk is full; :func:`dcnv4_mm.engine.install` replaces it.
"""

import logging
import re
from pathlib import Path

from mmengine.fileio import LocalBackend
from mmengine.logging import print_log

from dcnv4_mm.atomic_files import write_file
from dcnv4_mm.engine.checkpoint_io import load_from_local

__all__ = ["AtomicLocalBackend", "find_complete_checkpoint"]


class AtomicLocalBackend(LocalBackend):
    """mmengine's local file backend with atomic writes: a temporary file that is then renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file; an earlier file of this name is kept until the new one is complete.

        Args:
            obj: The content.
            filepath: The file; its folder is created.

        Raises:
            OSError: The file cannot be written; the earlier file is unchanged.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_file(path, obj)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: {len(obj)} bytes could not be written; an earlier file of this "
                "name is unchanged",
                str(path),
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Writes a str to a file, as :meth:`put` does with bytes.

        Args:
            obj: The content.
            filepath: The file; its folder is created.
            encoding: Its encoding.
        """
        self.put(obj.encode(encoding), filepath)


def find_complete_checkpoint(folder: str | Path, pattern: str = "*.pth") -> str | None:
    """Finds the latest checkpoint of a run that can be resumed from.

    Args:
        folder: Work folder of the run.
        pattern: Glob pattern of its checkpoints, which are ordered by the number in their names.

    Returns:
        The file that ``last_checkpoint`` names or, if it is not readable, the readable one with the
        highest number; ``None`` if there are no checkpoints. Skipped files are logged.

    Raises:
        ValueError: None of the checkpoints is readable.
    """
    named = _read_pointer(Path(folder, "last_checkpoint"))
    # Not a local file: left to mmengine.
    if "://" in named:
        return named
    files: list[Path] = []
    # mmengine writes the name in place: a killed process may have left the half of it.
    for where in (Path(folder), Path(named).parent if named else None):
        if not files and where is not None:
            files = sorted(where.glob(pattern), key=_number, reverse=True)
    if named:
        files = [Path(named), *(file for file in files if file.name != Path(named).name)]
    for file in files:
        try:
            checkpoint = load_from_local(str(file), "cpu")
            keys = checkpoint.keys() if isinstance(checkpoint, dict) else ()
            if missing := {"meta", "state_dict", "message_hub"}.difference(keys):
                raise ValueError(f"{file} is no checkpoint of a run: it has no {sorted(missing)}")
        except (ValueError, OSError) as error:
            print_log(f"Skipped: {error}", logger="current", level=logging.WARNING)
        else:
            return str(file)
    if files:
        raise ValueError(
            f"none of the {len(files)} checkpoints in {folder} can be resumed from: "
            f"{', '.join(file.name for file in files)}; give another one, or start a "
            "new training in another work folder"
        )
    return None


def _read_pointer(pointer: Path) -> str:
    """The name in a ``last_checkpoint``; empty if it cannot be read, which is logged."""
    try:
        return pointer.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        message = f"Skipped: {pointer} cannot be read ({error})"
        print_log(message, logger="current", level=logging.WARNING)
        return ""


def _number(file: Path) -> int:
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else -1
