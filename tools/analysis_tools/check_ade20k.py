"""Checks that ADE20K is where the configs look for it, and says what to do if it is not.

    python tools/analysis_tools/check_ade20k.py data/ADEChallengeData2016 [--labels]

It looks for the label map of every picture; ``--labels`` also reads them all.
"""

import argparse
import sys
from pathlib import Path

ARCHIVE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
# Split -> number of its pictures.
SPLITS = {"training": 20210, "validation": 2000}
NUM_CLASSES = 150


def fetch(root: Path) -> str:
    """The commands that bring the archive and unpack it."""
    return f"curl -LO -C - {ARCHIVE} && unzip -q -n {Path(ARCHIVE).name} -d {root.parent}"


def check_split(root: Path, split: str, *, labels: bool) -> list[str]:
    """What is wrong with a split, with what mends it; empty if nothing is."""
    folders = {kind: root / kind / split for kind in ("images", "annotations")}
    missing = [folder for folder in folders.values() if not folder.is_dir()]
    if missing:
        return [f"{folder} is missing: {fetch(root)}" for folder in missing]
    pictures = {path.stem for path in folders["images"].glob("*.jpg")}
    maps = {path.stem for path in folders["annotations"].glob("*.png")}
    problems = []
    # The generated stand-in for ADE20K is smaller.
    if len(pictures) != SPLITS[split] and not (root / "mini_ade20k.json").is_file():
        problems.append(
            f"{folders['images']} holds {len(pictures)} pictures instead of {SPLITS[split]}: "
            f"{fetch(root)}"
        )
    if without := sorted(pictures - maps):
        problems.append(
            f"{folders['annotations']} lacks the label maps of {len(without)} of {len(pictures)} "
            f"pictures, such as {without[0]}.png: {fetch(root)}"
        )
    if labels:
        for name in sorted(pictures & maps):
            paths = (folders["images"] / f"{name}.jpg", folders["annotations"] / f"{name}.png")
            if problem := check_labels(*paths):
                problems.append(problem)
    return problems


def check_labels(picture: Path, labels: Path) -> str | None:
    """What is wrong with a label map, or ``None``."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(labels) as file, Image.open(picture) as of:
            mode, size, expected = file.mode, file.size, of.size
            values = np.unique(np.asarray(file))
    # A damaged file can make the reader fail in any way.
    except Exception as error:
        return f"{labels} or its picture is damaged ({error}): remove both and unpack them again"
    if mode not in ("L", "P"):
        return f"{labels} has pixels of the kind {mode!r}, expected is one channel of 8 bits"
    if size != expected:
        return f"{labels} has {size[0]} x {size[1]} pixels, {picture} {expected[0]} x {expected[1]}"
    wrong = [int(value) for value in values if NUM_CLASSES < value < 255]
    return (
        f"{labels} has the labels {wrong[:8]}, expected are 0 to {NUM_CLASSES}" if wrong else None
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a folder with ADE20K.")
    parser.add_argument("root", type=Path, nargs="?", default=Path("data/ADEChallengeData2016"))
    parser.add_argument("--labels", action="store_true", help="read every label map")
    args = parser.parse_args()
    problems = [p for split in SPLITS for p in check_split(args.root, split, labels=args.labels)]
    # Both splits come in one archive: say it once.
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{args.root} holds ADE20K: {', '.join(SPLITS)}, every picture with its label map")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
