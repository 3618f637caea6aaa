"""Atomic checkpoint writes, and the search for the latest checkpoint that is complete.

mmengine's own writer of local files leaves half a file under the final name where the process is
killed or the disk becomes full; :func:`dcnv4_mm.engine.install` replaces it.
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
        """Writes a file; until all of it is on the disk, what was there before stays.

        Args:
            obj: The content.
            filepath: The file; its folder is made.

        Raises:
            OSError: It cannot be written; nothing is left of it.
        """
        # Behind a link, as without the renaming.
        path = Path(filepath).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Always by one name: what a killed process left here is overwritten by the next.
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
                f"{error.strerror}: {len(obj)} bytes could not be written; nothing is left of "
                "them, and what was there before is as it was",
                str(path),
            ) from error


def find_complete_checkpoint(folder: str | Path, pattern: str = "*.pth") -> str | None:
    """Finds the latest checkpoint of a run from which training can go on.

    Args:
        folder: Work folder of the run.
        pattern: What the names of its checkpoints look like; a number in them orders them.

    Returns:
        The file that ``last_checkpoint`` names or, if that cannot be read, the one with the highest
        number that can; ``None`` if there are none at all. Those skipped are logged.

    Raises:
        ValueError: There are checkpoints, and none can be read.
    """
    pointer = Path(folder, "last_checkpoint")
    named = pointer.read_text().strip() if pointer.exists() else ""
    # mmengine's own readers know what is not a local file.
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
            if missing := {"meta", "state_dict", "message_hub"} - set(checkpoint):
                raise ValueError(f"{file} is no checkpoint of a run: it has no {sorted(missing)}")
        except (ValueError, OSError) as error:
            print_log(f"Skipped: {error}", logger="current", level=logging.WARNING)
        else:
            return str(file)
    if files:
        raise ValueError(
            f"none of the {len(files)} checkpoints in {folder} can be resumed from: "
            f"{', '.join(file.name for file in files)}; give another one, or train from the start "
            "in another work folder"
        )
    return None


def _number(file: Path) -> int:
    numbers = re.findall(r"\d+", file.stem)
    return int(numbers[-1]) if numbers else -1
