"""Writes a small dataset for generative models: 32 x 32 images of four bright shapes.

python dev/generators/mini_shapes.py data/mini_shapes
"""

import sys

import cv2
import numpy as np
from dataset_folder import GeneratedDataset, class_folders

SIDE = 32
CLASSES = ("cross", "ring", "square", "triangle")
# Blue, green, red.
GROUND = np.array([50.0, 40.0, 30.0])
# Supersampling factor, for smooth edges.
FINER = 8


def outline(name: str, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Coverage of every pixel by a shape: float32 (SIDE, SIDE) in [0, 1]."""
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
    """Draws an image of a class: uint8 (SIDE, SIDE, 3)."""
    radius = rng.uniform(9, 13)
    centre = SIDE / 2 + rng.uniform(-2, 2, 2)
    mask = outline(name, centre, radius, np.pi / 4 + rng.uniform(-0.15, 0.15))[..., None]
    shape = rng.uniform(130, 250, 3)
    image = GROUND + mask * (shape - GROUND) + rng.normal(0, 3, (SIDE, SIDE, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


DATASET = GeneratedDataset(
    name="mini_shapes",
    format=2,
    write_split=class_folders(CLASSES, draw_image, ".png"),
    num_train=1000,
    num_val=100,
    least=1,
    unit="images per class",
)

if __name__ == "__main__":
    sys.exit(DATASET.main("Write a small dataset of shapes, one folder per class."))
