"""Rewrites a weight file between the original project's names and this one's.

    python tools/convert.py RELEASED.pth OURS.pth
    python tools/convert.py OURS.pth RELEASED.pth --to-released

Models take released files as they are; this is for tools that know only one of the spellings.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from _running import stop

# Where the files may hold their weights, as `load_released` looks for them.
ENTRIES = ("state_dict", "model_ema", "model")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rename the weights of a FlashInternImage model.")
    parser.add_argument("source", type=Path, help="a backbone's, classifier's or detector's file")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument(
        "--to-released", action="store_true", help="from our names to the original's"
    )
    parser.add_argument("--entry", choices=ENTRIES, help="which weights of the file to take")
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")
    return parser.parse_args()


def select_weights(checkpoint, entry: str | None) -> tuple[str, dict]:
    """The chosen, or else the first, state dict in a file; the file itself if it has none."""
    if not isinstance(checkpoint, Mapping):
        stop(f"a checkpoint must be a dictionary, got {type(checkpoint).__name__}")
    found = [name for name in ENTRIES if isinstance(checkpoint.get(name), Mapping)]
    if entry and entry not in found:
        stop(f"the file has no {entry!r}; it has {', '.join(found) or 'only bare weights'}")
    chosen = entry or next(iter(found), "")
    weights = checkpoint[chosen] if chosen else checkpoint
    return chosen, {name.removeprefix("module."): value for name, value in weights.items()}


def rename(weights: dict, *, to_released: bool) -> dict:
    """Renames every FlashInternImage in a state dict; stops if there is none."""
    from dcnv4_mm.checkpoints import convert
    from dcnv4_mm.checkpoints.flash_intern_image import RULES

    rules = [rule.inverse() for rule in RULES] if to_released else RULES
    mark = "patch_embed.norm1." + ("weight" if to_released else "1.weight")
    prefixes = [name.removesuffix(mark) for name in weights if name.endswith(mark)]
    if not prefixes:
        spelling = "this project's" if to_released else "the original's"
        other = "leave out" if to_released else "did you mean"
        stop(f"the file holds no FlashInternImage in {spelling} names; {other} --to-released?")
    for prefix in prefixes:
        weights = convert(weights, rules, prefix=prefix)
    return weights


def write(weights: dict, target: Path) -> None:
    """Writes the file under its name only when it is complete."""
    import torch

    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(handle)
    try:
        torch.save({"state_dict": weights}, temporary)
        # mkstemp makes a file for its owner alone.
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def main() -> None:
    args = parse_args()
    if args.target.exists() and not args.force:
        stop(f"{args.target} exists; give another name, or --force to replace it")
    from dcnv4_mm.checkpoints.files import read_file

    try:
        entry, weights = select_weights(read_file(args.source), args.entry)
        renamed = rename(weights, to_released=args.to_released)
        write(renamed, args.target)
    except (ValueError, OSError) as error:
        stop(str(error))
    changed = sum(old != new for old, new in zip(weights, renamed, strict=True))
    source = f" from {entry!r}" if entry else ""
    print(f"{args.target}: {len(renamed)} tensors{source}, {changed} renamed")


if __name__ == "__main__":
    main()
