"""Writes a small classification set in ImageNet's folders: one shape on a textured background.

Ten classes, the outlines of mini COCO in warm and in cold colours; a folder for each.

    python tools/data/mini_imagenet.py data/mini_imagenet
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from _whole import write_whole
from mini_coco import CLASSES as OUTLINES
from mini_coco import color, draw_outline, texture

FORMAT = 1
# Hues in turns around the colour wheel; the two have none in common.
HUES = {"cold": (0.45, 0.7), "warm": (-0.05, 0.17)}
CLASSES = tuple(f"{warmth}_{outline}" for warmth in HUES for outline in sorted(OUTLINES))
SPLITS = ("train", "val")
SIDE_RANGE = (80, 128)


def draw_image(name: str, rng: np.random.Generator) -> np.ndarray:
    """One picture of a class: uint8 (H, W, 3) in OpenCV's channel order."""
    warmth, outline = name.split("_")
    shape = tuple(int(side) for side in rng.integers(SIDE_RANGE[0], SIDE_RANGE[1] + 1, 2))
    # The background may have any colour.
    image = texture(shape, color(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.2, 0.8)), 30, rng)
    radius = rng.uniform(0.26, 0.36) * min(shape)
    centre = tuple(side / 2 + rng.uniform(-0.1, 0.1) * side for side in shape[::-1])
    mask = draw_outline(OUTLINES.index(outline), centre, radius, shape, rng).astype(np.float32)
    alpha = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_AREA)[..., None]
    base = color(rng.uniform(*HUES[warmth]), rng.uniform(0.55, 0.95), rng.uniform(0.55, 0.95))
    image += alpha * (texture(shape, base, 14, rng) - image)
    image += rng.normal(0, 4, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_split(folder: Path, split: str, seed: int, count: int) -> None:
    """Writes ``count`` pictures of every class below ``folder/split``."""
    for label, name in enumerate(CLASSES):
        (folder / split / name).mkdir(parents=True)
        for index in range(count):
            rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), label, index]))
            path = folder / split / name / f"{name}_{index + 1:05d}.JPEG"
            done, content = cv2.imencode(".jpg", draw_image(name, rng))
            if not done:
                raise OSError(f"cannot encode {path.name}")
            path.write_bytes(content)


def generate(
    out_dir: str | Path, *, seed: int = 0, num_train: int = 120, num_val: int = 40
) -> bool:
    """Writes the set to ``out_dir``, or keeps a finished one.

    The folder appears under its name only when it is complete.

    Args:
        out_dir: Folder to make: ``train/<class>/*.JPEG``, ``val/<class>/*.JPEG``.
        seed: Fixes every picture; the two splits share none.
        num_train: Pictures of each class to train on, at least 1.
        num_val: Held-out pictures of each class, at least 1.

    Returns:
        True if the set was written, False if it was there already.

    Raises:
        ValueError: Too few pictures, or the folder holds something else.
        OSError: The folder cannot be written.
    """
    if min(num_train, num_val) < 1:
        raise ValueError(f"each class needs at least 1 picture, got {num_train} and {num_val}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    settings = {"name": "mini_imagenet", "format": FORMAT, "seed": seed}
    settings |= {"train": num_train, "val": num_val}

    def write(folder: Path) -> None:
        for split in SPLITS:
            write_split(folder, split, seed, settings[split])

    return write_whole(out_dir, settings, write)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a small ImageNet-format set of shapes.")
    parser.add_argument("out_dir", type=Path, help="folder to make, e.g. data/mini_imagenet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-train", type=int, default=120, help="pictures of each class")
    parser.add_argument("--num-val", type=int, default=40, help="held-out pictures of each class")
    args = parser.parse_args()
    sizes = {"num_train": args.num_train, "num_val": args.num_val}
    try:
        written = generate(args.out_dir, seed=args.seed, **sizes)
    except (ValueError, OSError) as error:
        print(f"mini_imagenet.py: error: {error}", file=sys.stderr)
        return 1
    what = "wrote" if written else "kept the finished set in"
    print(
        f"{what} {args.out_dir}: {len(CLASSES)} classes, {args.num_train} training and "
        f"{args.num_val} held-out pictures of each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
