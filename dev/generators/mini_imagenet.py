"""Writes a small classification dataset in ImageNet's folders: one shape on a textured background.

Ten classes: the outlines of mini COCO in warm and in cold colours.

    python dev/generators/mini_imagenet.py data/mini_imagenet
"""

import sys

import cv2
import numpy as np
from dataset_folder import GeneratedDataset, class_folders
from mini_coco import CLASSES as OUTLINES
from mini_coco import color, draw_outline, texture

# Ranges of hues as fractions of the colour wheel, which do not overlap.
HUES = {"cold": (0.45, 0.7), "warm": (-0.05, 0.17)}
CLASSES = tuple(f"{warmth}_{outline}" for warmth in HUES for outline in sorted(OUTLINES))
SIDE_RANGE = (80, 128)


def draw_image(name: str, rng: np.random.Generator) -> np.ndarray:
    """Draws an image of a class: uint8 (H, W, 3) in OpenCV's channel order."""
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


DATASET = GeneratedDataset(
    name="mini_imagenet",
    format=1,
    write_split=class_folders(CLASSES, draw_image, ".JPEG"),
    num_train=120,
    num_val=40,
    least=1,
    unit="images per class",
)

if __name__ == "__main__":
    sys.exit(DATASET.main("Write a small ImageNet-format dataset of shapes."))
