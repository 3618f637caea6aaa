"""Writes a small set to learn to generate: 32 x 32 pictures of four bright shapes in the dark.

python dev/generators/mini_shapes.py data/mini_shapes
"""

import sys

import cv2
import numpy as np
from class_folders import ClassFolders

SIDE = 32
CLASSES = ("cross", "ring", "square", "triangle")
# Blue, green, red.
GROUND = np.array([50.0, 40.0, 30.0])
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


SET = ClassFolders(
    name="mini_shapes",
    format=2,
    classes=CLASSES,
    draw_image=draw_image,
    suffix=".png",
    num_train=1000,
    num_val=100,
)
generate = SET.generate

if __name__ == "__main__":
    sys.exit(SET.main("Write a small set of shapes, a folder per class."))
