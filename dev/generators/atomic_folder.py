"""Writes a generated data set as a whole, once: what the generators here share."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_whole(out_dir: str | Path, settings: dict, write: Callable[[Path], None]) -> bool:
    """Makes a folder of what ``write`` puts into it, or keeps a finished one.

    Args:
        out_dir: The folder to make.
        settings: What the set is made from, its ``name`` among them; kept in ``<name>.json``.
        write: Fills the folder that it is given.

    Returns:
        True if the set was written, False if it was there already.

    Raises:
        ValueError: The folder holds something else.
        OSError: The folder cannot be written.
    """
    out_dir, stamp = Path(out_dir), f"{settings['name']}.json"
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        path = out_dir / stamp
        found = json.loads(path.read_text()) if path.is_file() else f"no {settings['name']} set"
        if found != settings:
            raise ValueError(
                f"{out_dir} holds {found}, asked for was {settings}: give another folder, or "
                "remove this one first"
            )
        return False
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        write(temporary)
        (temporary / stamp).write_text(json.dumps(settings))
        # mkdtemp makes a folder for its owner alone.
        temporary.chmod(0o755)
        os.replace(temporary, out_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True
