"""Writes a small set to learn to generate: 32 x 32 pictures of four bright shapes in the dark.

python tools/data/mini_shapes.py data/mini_shapes
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from _whole import write_whole

FORMAT = 2
SIDE = 32
CLASSES = ("cross", "ring", "square", "triangle")
# Blue, green, red.
GROUND = np.array([50.0, 40.0, 30.0])
SPLITS = ("train", "val")
# Drawn so much larger, then averaged: edges come out smooth.
FINER = 8


def outline(name: str, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Share of every pixel that a shape covers: float32 (SIDE, SIDE)."""
    mask = np.zeros((SIDE * FINER, SIDE * FINER), np.uint8)
    middle = tuple(int(value) for value in centre * FINER)
    if name == "ring":
        cv2.circle(mask, middle, int(0.75 * radius * FINER), 255, int(0.4 * radius * FINER))
    elif name == "cross":
        for turn in (angle, angle + np.pi / 2):
            step = 0.9 * radius * np.array([np.cos(turn), np.sin(turn)])
            ends = [tuple(int(v) for v in (centre + s * step) * FINER) for s in (-1, 1)]
            cv2.line(mask, *ends, 255, int(0.45 * radius * FINER))
    else:
        corners = {"triangle": 3, "square": 4}[name]
        turns = angle + 2 * np.pi * np.arange(corners) / corners
        points = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        cv2.fillPoly(mask, [np.int32(points * FINER)], 255)
    return cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def draw_image(name: str, rng: np.random.Generator) -> np.ndarray:
    """One picture of a class: uint8 (SIDE, SIDE, 3)."""
    radius = rng.uniform(9, 13)
    centre = SIDE / 2 + rng.uniform(-2, 2, 2)
    mask = outline(name, centre, radius, np.pi / 4 + rng.uniform(-0.15, 0.15))[..., None]
    shape = rng.uniform(130, 250, 3)
    image = GROUND + mask * (shape - GROUND) + rng.normal(0, 3, (SIDE, SIDE, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_split(folder: Path, split: str, seed: int, count: int) -> None:
    """Writes ``count`` pictures of every class below ``folder/split``."""
    for label, name in enumerate(CLASSES):
        (folder / split / name).mkdir(parents=True)
        for index in range(count):
            rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), label, index]))
            done, content = cv2.imencode(".png", draw_image(name, rng))
            if not done:
                raise OSError(f"cannot encode picture {index} of {name}")
            (folder / split / name / f"{name}_{index + 1:05d}.png").write_bytes(content)


def generate(
    out_dir: str | Path, *, seed: int = 0, num_train: int = 1000, num_val: int = 100
) -> bool:
    """Writes the set to ``out_dir``, or keeps a finished one.

    The folder appears under its name only when it is complete.

    Args:
        out_dir: Folder to make: ``train/<class>/*.png``, ``val/<class>/*.png``.
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
    settings = {"name": "mini_shapes", "format": FORMAT, "seed": seed}
    settings |= {"train": num_train, "val": num_val}

    def write(folder: Path) -> None:
        for split in SPLITS:
            write_split(folder, split, seed, settings[split])

    return write_whole(out_dir, settings, write)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a small set of shapes, a folder per class.")
    parser.add_argument("out_dir", type=Path, help="folder to make, e.g. data/mini_shapes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-train", type=int, default=1000, help="pictures of each class")
    parser.add_argument("--num-val", type=int, default=100, help="held-out pictures of each class")
    args = parser.parse_args()
    sizes = {"num_train": args.num_train, "num_val": args.num_val}
    try:
        written = generate(args.out_dir, seed=args.seed, **sizes)
    except (ValueError, OSError) as error:
        print(f"mini_shapes.py: error: {error}", file=sys.stderr)
        return 1
    what = "wrote" if written else "kept the finished set in"
    print(
        f"{what} {args.out_dir}: {len(CLASSES)} classes, {args.num_train} training and "
        f"{args.num_val} held-out pictures of each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
