"""Converts a weight file between the keys of the original project and this one's.

    python tools/model_converters/convert.py RELEASED.pth OURS.pth
    python tools/model_converters/convert.py OURS.pth RELEASED.pth --to-released

The target gets eight digits of its checksum added to its name: OURS-1a2b3c4d.pth. Models load
released files as they are; this is for tools that know only one set of keys.
"""

import argparse
import glob
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from dcnv4_mm.cli.configs import stop

# Entries that may hold the weights, in the order of `load_released`.
ENTRIES = ("state_dict", "model_ema", "model")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert the keys of a FlashInternImage model.")
    parser.add_argument("source", type=Path, help="a backbone's, classifier's or detector's file")
    parser.add_argument("target", type=Path, help="file to write, -CHECKSUM added to its name")
    parser.add_argument(
        "--to-released", action="store_true", help="from our keys to the original's"
    )
    parser.add_argument("--entry", choices=ENTRIES, help="which weights of the file to take")
    parser.add_argument(
        "--force", action="store_true", help="convert again although the target exists"
    )
    return parser.parse_args()


def select_weights(checkpoint, entry: str | None) -> tuple[str, dict]:
    """The chosen, or else the first, state dict in a file; the file itself if it has none.

    Raises:
        ValueError: There is no such state dict, or it holds anything but tensors.
    """
    from dcnv4_mm.checkpoints.loading import select_entry

    if entry and isinstance(checkpoint, Mapping):
        if not isinstance(checkpoint.get(entry), Mapping):
            raise ValueError(
                f"no entry {entry!r}, only {', '.join(map(str, list(checkpoint)[:5]))}"
            )
        checkpoint = {entry: checkpoint[entry]}
    chosen, weights = select_entry(checkpoint, classifier=False)
    return chosen, {name.removeprefix("module."): value for name, value in weights.items()}


def rename(weights: dict, *, to_released: bool) -> dict:
    """Renames a state dict with a FlashInternImage in it.

    Raises:
        ValueError: There is none, or it has the target's keys already.
    """
    from dcnv4_mm.checkpoints.identify import identify
    from dcnv4_mm.checkpoints.key_mappings import (
        FLASH_INTERN_IMAGE,
        convert_keys,
        find_key_mappings,
    )

    if not FLASH_INTERN_IMAGE.find_prefixes(weights, released=not to_released):
        spelling, option = (
            ("this project's", "leave out") if to_released else ("the original's", "did you mean")
        )
        other = FLASH_INTERN_IMAGE.find_prefixes(weights, released=to_released)
        if not other:
            raise ValueError(f"expected a FlashInternImage, got {identify(weights)}")
        raise ValueError(
            f"no FlashInternImage with {spelling} keys (it is converted already): {option} "
            "--to-released?"
        )
    mappings = find_key_mappings(weights, released=not to_released)
    return convert_keys(weights, mappings, to_released=to_released)


def leave_out(weights: dict) -> tuple[dict, dict]:
    """Removes the copies that mmdet 2's EMA hook leaves; returns the rest and what was dropped."""
    copies = {"ema_" + name.replace(".", "_") for name in weights}
    dropped = {name: "a second copy of the weights" for name in weights if name in copies}
    return {name: value for name, value in weights.items() if name not in dropped}, dropped


def write(checkpoint: dict, target: Path) -> tuple[Path, str, int]:
    """Writes the file atomically; returns its name, its SHA-256 and its size."""
    import torch

    from dcnv4_mm.atomic_files import write_file

    # The name depends on the content.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    checksum = hashlib.sha256(buffer.getbuffer()).hexdigest()
    path = target.with_name(f"{target.stem}-{checksum[:8]}{target.suffix}")
    write_file(path, buffer.getbuffer())
    return path, checksum, len(buffer.getbuffer())


def earlier(target: Path) -> list[Path]:
    """Files that an earlier conversion to this target has written."""
    digits = "[0-9a-f]" * 8
    return sorted(target.parent.glob(f"{glob.escape(target.stem)}-{digits}{target.suffix}"))


def main() -> None:
    args = parse_args()
    if (found := earlier(args.target)) and not args.force:
        stop(f"{found[0]} exists; give another name, or --force to convert again")
    from dcnv4_mm.checkpoints import ConversionReport
    from dcnv4_mm.checkpoints.files import naming_file, read_file

    try:
        with naming_file(args.source):
            entry, weights = select_weights(read_file(args.source), args.entry)
            weights, dropped = leave_out(weights)
            renamed = rename(weights, to_released=args.to_released)
        path, *_ = write({"state_dict": renamed}, args.target)
    except (ValueError, OSError) as error:
        stop(str(error))
    changes = {old: new for old, new in zip(weights, renamed, strict=True) if old != new}
    report = ConversionReport(entry=entry, loaded=renamed, renamed=changes, dropped=dropped)
    print(f"{path}: {report}")


if __name__ == "__main__":
    main()
