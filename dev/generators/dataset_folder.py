"""Writes a generated dataset atomically, once: what the generators here share."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
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


def check_sizes(seed: int, num_train: int, num_val: int) -> None:
    """Raises ``ValueError`` for fewer than 2 images in a split, and for a negative seed."""
    if min(num_train, num_val) < 2:
        raise ValueError(f"each split needs at least 2 images, got {num_train} and {num_val}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")


def show_progress(name: str, images: Iterable[None], total: int) -> None:
    """Runs through an iterable with a step per image, with a progress line on a terminal."""
    for done, _ in enumerate(images, 1):
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{name}: {done}/{total} images", end=end, file=sys.stderr, flush=True)


def command_line(
    name: str,
    description: str,
    generate: Callable[..., bool],
    *,
    num_train: int,
    num_val: int,
    flags: dict[str, str] | None = None,
) -> int:
    """Runs a generator from the command line.

    Args:
        name: Name of the dataset and of the script.
        description: What the script writes.
        generate: Function of the folder to make, ``seed``, ``num_train``, ``num_val`` and the
            flags; returns whether it wrote the dataset.
        num_train: Default number of training images.
        num_val: Default number of held-out images.
        flags: Further options without a value -> their help.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out_dir", type=Path, help=f"folder to make, for example data/{name}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-train", type=int, default=num_train)
    parser.add_argument("--num-val", type=int, default=num_val)
    for flag, text in (flags or {}).items():
        parser.add_argument(flag, action="store_true", help=text)
    args = vars(parser.parse_args())
    out_dir = args.pop("out_dir")
    try:
        written = generate(out_dir, **args)
    except (ValueError, OSError) as error:
        print(f"{name}.py: error: {error}", file=sys.stderr)
        return 1
    what = "wrote" if written else "kept the finished dataset in"
    print(f"{what} {out_dir}: {args['num_train']} training, {args['num_val']} held-out images")
    return 0
