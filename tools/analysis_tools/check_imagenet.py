"""Checks the folders of an ImageNet-format data set before a training finds a fault.

    python tools/analysis_tools/check_imagenet.py data/imagenet

Expected are train/<class>/<picture> and val/<class>/<picture>, the same classes in both. For
ImageNet-1k itself that is 1000 classes, 1281167 and 50000 pictures; for a set of your own any.
"""

import argparse
import os
import sys
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")
IMAGENET_1K = {"train": 1281167, "val": 50000}


def count_pictures(folder: Path) -> dict[str, int]:
    """Number of pictures by class; pictures that lie outside of a class folder are under ''."""
    counts: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                names = (name for _, _, files in os.walk(entry.path) for name in files)
                counts[entry.name] = sum(name.lower().endswith(SUFFIXES) for name in names)
            elif entry.name.lower().endswith(SUFFIXES):
                counts[""] = counts.get("", 0) + 1
    return counts


def faults(root: Path, *, exact: bool = False) -> list[str]:
    """What is wrong with a data set, one line each; empty if nothing is.

    Args:
        root: The folder with ``train`` and ``val``.
        exact: Whether it must be the whole of ImageNet-1k.
    """
    splits = {split: root / split for split in IMAGENET_1K}
    missing = [f"{path} does not exist" for path in splits.values() if not path.is_dir()]
    if missing:
        return missing
    found = []
    counts = {split: count_pictures(path) for split, path in splits.items()}
    for split, classes in counts.items():
        if loose := classes.pop("", 0):
            found.append(
                f"{loose} pictures lie in {splits[split]} itself: move each into the folder of its "
                "class" + (" (docs/imagenet.md)" if split == "val" else "")
            )
        if empty := sorted(name for name, count in classes.items() if not count):
            found.append(f"{splits[split]} has classes without pictures: {some(empty)}")
        if not classes:
            found.append(f"{splits[split]} has no class folders")
    for one, other in (("train", "val"), ("val", "train")):
        if extra := sorted(set(counts[one]) - set(counts[other])):
            found.append(f"classes in {one} that {other} lacks: {some(extra)}")
    for split, expected in IMAGENET_1K.items() if exact else ():
        classes, total = counts[split], sum(counts[split].values())
        if (len(classes), total) != (1000, expected):
            found.append(
                f"{splits[split]} has {len(classes)} classes and {total} pictures; ImageNet-1k has "
                f"1000 and {expected}"
            )
    return found


def some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the folders of an ImageNet-format set.")
    parser.add_argument("root", type=Path, help="folder with train and val, e.g. data/imagenet")
    parser.add_argument("--exact", action="store_true", help="it must be all of ImageNet-1k")
    args = parser.parse_args()
    found = faults(args.root, exact=args.exact)
    for line in found:
        print(f"check_imagenet.py: {line}", file=sys.stderr)
    if not found:
        counts = {split: count_pictures(args.root / split) for split in IMAGENET_1K}
        parts = ", ".join(f"{sum(c.values())} pictures in {s}" for s, c in counts.items())
        print(f"{args.root} is in order: {len(counts['train'])} classes, {parts}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
