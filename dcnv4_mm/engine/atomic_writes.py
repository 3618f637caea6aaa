"""Atomic checkpoint writes, and the search for the latest complete checkpoint.

mmengine's own writer leaves a truncated file under the final name when the process is killed or the
disk is full; :func:`dcnv4_mm.engine.install` replaces it.
"""

import logging
import os
import re
from pathlib import Path

from mmengine.fileio import LocalBackend
from mmengine.logging import print_log

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
        # The target of a symbolic link, as without renaming.
        path = Path(filepath).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        # A fixed name: the next write overwrites the rest of a killed process.
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f"{error.strerror}: {len(obj)} bytes could not be written; an earlier file of this "
                "name is unchanged",
                str(path),
            ) from error


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
    pointer = Path(folder, "last_checkpoint")
    named = pointer.read_text().strip() if pointer.exists() else ""
    # Not a local file: left to mmengine.
    if "://" in named:
        return named
    parent = Path(named).parent
    where = parent if named and parent.is_dir() else Path(folder)
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


def _number(file: Path) -> int:
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else -1
