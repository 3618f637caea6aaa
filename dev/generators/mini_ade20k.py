"""Writes a small semantic-segmentation dataset in ADE20K's folders: shapes on textured backgrounds.

The images are those of mini_coco.py. Labels are palette PNGs as in ADE20K: 0 is ignored (regions
with many tiny objects), 1 is the ground, and each kind of shape is a class.

    python dev/generators/mini_ade20k.py data/mini_ade20k
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from dataset_folder import GeneratedDataset, random_generator, write_image
from mini_coco import CLASSES as SHAPES
from mini_coco import FINE, Instance, draw_image
from PIL import Image

CLASSES = ("ground", *SHAPES)
# RGB colours of the labels 0 (ignored), 1, 2, ...
PALETTE = (
    *((0, 0, 0), (128, 128, 128)),
    *((230, 25, 75), (255, 225, 25), (60, 180, 75), (0, 130, 200), (240, 50, 230)),
)
# Folder -> prefix of ADE20K's file names in it.
SPLITS = {"training": "ADE_train", "validation": "ADE_val"}


def label_map(instances: list[Instance], shape: tuple[int, int]) -> np.ndarray:
    """The label of every pixel, uint8 (H, W).

    Args:
        instances: The objects of an image, with their visible parts.
        shape: Height and width of the image.
    """
    height, width = shape
    labels = np.ones(shape, np.uint8)
    for instance in instances:
        assert instance.fine_mask.shape == (height * FINE, width * FINE)
        coverage = cv2.resize(
            instance.fine_mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
        )
        labels[coverage > 0.5] = 0 if instance.crowd else instance.label + 2
    return labels


def write_split(folder: Path, split: int, seed: int, count: int) -> Iterator[None]:
    """Writes the images and label maps of one split, yielding after each image."""
    name, prefix = list(SPLITS.items())[split]
    images, annotations = folder / "images" / name, folder / "annotations" / name
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for index in range(count):
        # Ignored regions in every eighth image; the second image is all ground.
        kind = "crowd" if index % 8 == 0 else "empty" if index == 1 else "objects"
        image, instances = draw_image(random_generator(seed, split, index), kind)
        stem = f"{prefix}_{index + 1:08d}"
        write_image(images / f"{stem}.jpg", image, cv2.IMWRITE_JPEG_QUALITY, 92)
        labels = Image.fromarray(label_map(instances, image.shape[:2]), mode="P")
        labels.putpalette([value for rgb in PALETTE for value in rgb])
        labels.save(annotations / f"{stem}.png")
        yield


DATASET = GeneratedDataset(
    name="mini_ade20k",
    format=1,
    write_split=write_split,
    num_train=240,
    num_val=60,
    splits=tuple(SPLITS),
)

if __name__ == "__main__":
    sys.exit(DATASET.main("Write a small dataset of drawn shapes in ADE20K's folders."))
