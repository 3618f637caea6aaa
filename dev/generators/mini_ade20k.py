"""Writes a small semantic-segmentation set in ADE20K's folders: shapes on textured backgrounds.

The pictures are those of mini_coco.py. Labels are palette PNGs as in ADE20K: 0 is ignored (regions
with many tiny objects), 1 is the ground, and a class for each kind of shape follows.

    python dev/generators/mini_ade20k.py data/mini_ade20k
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from dataset_folder import check_sizes, command_line, write_whole
from mini_coco import CLASSES as SHAPES
from mini_coco import FINE, Instance, draw_image
from PIL import Image

FORMAT = 1
CLASSES = ("ground", *SHAPES)
# Of the labels 0 (ignored), 1, 2, ...
PALETTE = (
    *((0, 0, 0), (128, 128, 128)),
    *((230, 25, 75), (255, 225, 25), (60, 180, 75), (0, 130, 200), (240, 50, 230)),
)
# Folder -> what ADE20K's file names in it begin with.
SPLITS = {"training": "ADE_train", "validation": "ADE_val"}


def label_map(instances: list[Instance], shape: tuple[int, int]) -> np.ndarray:
    """The label of every pixel, uint8 (H, W).

    Args:
        instances: The objects of a picture, with the parts of them that are visible.
        shape: Height and width of the picture.
    """
    height, width = shape
    labels = np.ones(shape, np.uint8)
    for instance in instances:
        assert instance.fine_mask.shape == (height * FINE, width * FINE)
        share = cv2.resize(
            instance.fine_mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
        )
        labels[share > 0.5] = 0 if instance.crowd else instance.label + 2
    return labels


def write_split(folder: Path, split: str, seed: int, count: int) -> None:
    """Writes the pictures and the label maps of one split."""
    pictures, annotations = folder / "images" / split, folder / "annotations" / split
    pictures.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for index in range(count):
        # Ignored regions in every eighth picture; one picture is all ground.
        kind = "crowd" if index % 8 == 0 else "empty" if index == 1 else "objects"
        rng = np.random.Generator(np.random.PCG64([seed, list(SPLITS).index(split), index]))
        picture, instances = draw_image(rng, kind)
        name = f"{SPLITS[split]}_{index + 1:08d}"
        path = pictures / f"{name}.jpg"
        if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"cannot write {path}")
        labels = Image.fromarray(label_map(instances, picture.shape[:2]), mode="P")
        labels.putpalette([value for rgb in PALETTE for value in rgb])
        labels.save(annotations / f"{name}.png")


def generate(
    out_dir: str | Path, *, seed: int = 0, num_train: int = 240, num_val: int = 60
) -> bool:
    """Writes the set to ``out_dir``, or keeps a finished one.

    The folder appears under its name only when it is complete.

    Args:
        out_dir: Folder to make: ``images/{training,validation}/*.jpg`` and
            ``annotations/{training,validation}/*.png``.
        seed: Fixes every picture; the two splits share none.
        num_train: Pictures to train on, at least 2.
        num_val: Held-out pictures, at least 2.

    Returns:
        True if the set was written, False if it was there already.

    Raises:
        ValueError: Too few pictures, or the folder holds something else.
        OSError: The folder cannot be written.
    """
    check_sizes(seed, num_train, num_val)
    settings = {"name": "mini_ade20k", "format": FORMAT, "seed": seed}
    settings |= {"training": num_train, "validation": num_val}

    def write(folder: Path) -> None:
        for split in SPLITS:
            write_split(folder, split, seed, settings[split])

    return write_whole(out_dir, settings, write)


if __name__ == "__main__":
    description = "Write a small set of drawn shapes in the folders of ADE20K."
    sys.exit(command_line("mini_ade20k", description, generate, num_train=240, num_val=60))
