"""Checks that COCO 2017 is where the configs look for it, and says what to do if it is not.

    python tools/analysis_tools/check_coco.py data/coco [--quick]

It reads the annotation files and looks for every picture; ``--quick`` skips the pictures' sizes.
"""

import argparse
import json
import os
from pathlib import Path

HOME = "http://images.cocodataset.org"
# Split: archive of its pictures, their number.
SPLITS = {
    "train2017": (f"{HOME}/zips/train2017.zip", 118287),
    "val2017": (f"{HOME}/zips/val2017.zip", 5000),
}
ANNOTATIONS = f"{HOME}/annotations/annotations_trainval2017.zip"


def fetch(address: str, root: Path) -> str:
    """The commands that bring an archive and unpack it."""
    name = address.rsplit("/", 1)[1]
    return f"curl -LO -C - {address} && unzip -q -n {name} -d {root}"


def check_split(root: Path, split: str, *, quick: bool) -> list[str]:
    """What is wrong with a split, with the command that mends it; empty if nothing is."""
    address, count = SPLITS[split]
    annotations = root / "annotations" / f"instances_{split}.json"
    if not annotations.is_file():
        return [f"{annotations} is missing: {fetch(ANNOTATIONS, root)}"]
    try:
        images = json.loads(annotations.read_text())["images"]
        names = [image["file_name"] for image in images]
        if not isinstance(images, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("images must be a list of objects with a text file_name")
    except (ValueError, KeyError, TypeError) as error:
        return [
            f"{annotations} is damaged ({type(error).__name__}: {error}): remove it, then "
            f"{fetch(ANNOTATIONS, root)}"
        ]
    # The generated stand-in for COCO is smaller.
    if len(images) != count and not (root / "mini_coco.json").is_file():
        return [
            f"{annotations} lists {len(images)} pictures instead of {count}: remove it, then "
            f"{fetch(ANNOTATIONS, root)}"
        ]
    folder = root / split
    if not folder.is_dir():
        return [f"{folder} is missing: {fetch(address, root)}"]
    present = set(os.listdir(folder))
    missing = [name for name in names if name not in present]
    empty = [] if quick else [name for name in present if (folder / name).stat().st_size == 0]
    problems = []
    if missing:
        problems.append(
            f"{folder} lacks {len(missing)} of {len(images)} pictures, such as {missing[0]}: "
            f"{fetch(address, root)}"
        )
    if empty:
        problems.append(
            f"{folder} has {len(empty)} empty files, such as {min(empty)}: remove them, then "
            f"{fetch(address, root)}"
        )
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a folder with COCO 2017.")
    parser.add_argument("root", type=Path, nargs="?", default=Path("data/coco"))
    parser.add_argument("--quick", action="store_true", help="do not look at each picture's size")
    args = parser.parse_args()
    problems = [p for split in SPLITS for p in check_split(args.root, split, quick=args.quick)]
    if problems:
        # Both splits come in one archive of annotations: say it once.
        raise SystemExit("\n".join(dict.fromkeys(problems)))
    print(f"{args.root} holds COCO 2017: {', '.join(SPLITS)} and their annotations")


if __name__ == "__main__":
    main()
