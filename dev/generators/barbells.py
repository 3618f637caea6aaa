"""Writes a small detection dataset in COCO format that needs a large receptive field: barbells.

A barbell is a bent bar with a colored disk at each end; its class is the pair of colors, its box
holds all of it. What lies around the center is the same for every class: a detector has to sample
both ends, whose direction and distance differ from object to object.

    python dev/generators/barbells.py data/barbells
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from dataset_folder import GeneratedDataset, random_generator, write_image
from pycocotools import mask as coco_mask

SPLITS = ("train", "val")
# In OpenCV's channel order.
COLORS = {"red": (40, 40, 220), "green": (60, 190, 60), "blue": (220, 120, 30)}
CLASSES = ("red-green", "red-blue", "green-blue", "red-red", "green-green")
SIDE = 176
# Ranges in pixels; the bend is the angle between the two ends, in radians.
LENGTHS, WIDTHS, RADII, BENDS = (40, 96), (5, 8), (6, 10), (-1.2, 1.2)
# Masks are drawn on a grid this many times finer than the image, for smooth edges.
FINE = 4


@dataclass(frozen=True)
class Barbell:
    """One object.

    Attributes:
        label: Index into ``CLASSES``.
        ends: The colors of the first and the last point.
        points: Center line in pixels (x, y), (40, 2).
        width: Width of the bar in pixels.
        radius: Radius of the disks in pixels.
    """

    label: int
    ends: tuple[str, str]
    points: np.ndarray
    width: float
    radius: float

    def bar(self) -> np.ndarray:
        """Mask of the bar on the fine grid, uint8 (SIDE * FINE, SIDE * FINE)."""
        mask = np.zeros((SIDE * FINE, SIDE * FINE), np.uint8)
        line = np.round(self.points * FINE).astype(np.int32)
        cv2.polylines(mask, [line], False, 1, round(self.width * FINE))
        return mask

    def disk(self, end: int) -> np.ndarray:
        """Mask of the disk at the first (0) or last (-1) point, on the fine grid."""
        mask = np.zeros((SIDE * FINE, SIDE * FINE), np.uint8)
        x, y = np.round(self.points[end] * FINE).astype(int).tolist()
        cv2.circle(mask, (x, y), round(self.radius * FINE), 1, -1)
        return mask

    def mask(self) -> np.ndarray:
        """Mask of the object on the fine grid, bool."""
        return (self.bar() | self.disk(0) | self.disk(-1)).astype(bool)


def draw_barbell(rng: np.random.Generator) -> Barbell | None:
    """Draws the parameters of an object; ``None`` if it does not fit into the image."""
    label = int(rng.integers(len(CLASSES)))
    length = math.exp(rng.uniform(*np.log(LENGTHS)))
    bend, angle = rng.uniform(*BENDS), rng.uniform(0, 2 * math.pi)
    width, radius = rng.uniform(*WIDTHS), rng.uniform(*RADII)
    first, last = CLASSES[label].split("-")
    ends = (first, last) if rng.random() < 0.5 else (last, first)
    # An arc of unit length; a bend of 0 would divide by 0.
    along = np.linspace(-0.5, 0.5, 40) * bend
    points = np.stack([np.sin(along), 1 - np.cos(along)], axis=1) / bend
    turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    points = points @ np.array(turn) * length
    points += rng.uniform(0, SIDE, 2) - (points.max(0) + points.min(0)) / 2
    if (points.min(0) < radius + 1).any() or (points.max(0) > SIDE - radius - 2).any():
        return None
    return Barbell(label, ends, points, width, radius)


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draws an image with two to four objects, which do not touch.

    Returns:
        The image, uint8 (SIDE, SIDE, 3) in OpenCV's channel order, and label and mask (fine grid)
        of each object.
    """
    image = np.ones((SIDE, SIDE, 3), np.float32) * (rng.uniform(60, 190) + rng.uniform(-15, 15, 3))
    for cells in (3, 9, 30):
        coarse = rng.normal(0, 14, (cells, cells)).astype(np.float32)
        image += cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)[..., None]
    covered = np.zeros((SIDE * FINE, SIDE * FINE), bool)
    objects = []
    for _ in range(int(rng.integers(2, 5))):
        for _ in range(40):
            barbell = draw_barbell(rng)
            if barbell is not None and not (barbell.mask() & covered).any():
                break
        else:
            break
        covered |= barbell.mask()
        blend(image, barbell.bar(), np.full(3, rng.uniform(20, 235)))
        for end, color in zip((0, -1), barbell.ends, strict=True):
            blend(image, barbell.disk(end), COLORS[color] + rng.uniform(-25, 25, 3))
        objects.append((barbell.label, barbell.mask()))
    image += rng.normal(0, 4, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), objects


def blend(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Fills a mask of the fine grid with a color, in place, with smooth edges."""
    alpha = cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    image += alpha[..., None] * (color - image)


def annotation(label: int, mask: np.ndarray, image_id: int, annotation_id: int) -> dict:
    """The entry of an object in a COCO file, with a run-length mask of the image's size."""
    covered = cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) >= 0.5
    encoded = coco_mask.encode(np.asfortranarray(covered.astype(np.uint8)))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "area": float(coco_mask.area(encoded)),
        "iscrowd": 0,
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
    }


def write_split(folder: Path, index: int, seed: int, count: int) -> Iterator[None]:
    """Writes a split's images, yielding after each, then its annotation file."""
    split = SPLITS[index]
    for path in (folder / split, folder / "annotations"):
        path.mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        image, objects = draw_image(random_generator(seed, index, image_id - 1))
        name = f"{image_id:06d}.png"
        write_image(folder / split / name, image)
        images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
        for label, mask in objects:
            annotations.append(annotation(label, mask, image_id, len(annotations) + 1))
        yield
    content = {
        "info": {"description": f"barbells, {split}, seed {seed}"},
        "licenses": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


DATASET = GeneratedDataset(
    name="barbells", format=1, write_split=write_split, num_train=600, num_val=150
)

if __name__ == "__main__":
    sys.exit(DATASET.main("Write a small COCO-format dataset of barbells."))
