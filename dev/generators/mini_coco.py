"""Writes a small instance-segmentation dataset in COCO format: shapes on textured backgrounds.

It covers what real COCO files contain: polygons, run-length masks, occlusion, small objects, a
crowd region and an image without objects. An object's outline defines its class; the colour is only
correlated with it.

    python dev/generators/mini_coco.py data/mini_coco
    python dev/generators/mini_coco.py data/coco --as-coco    # every COCO config runs on it
"""

import colorsys
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

CLASSES = ("disk", "ring", "triangle", "box", "star")
SPLITS = ("train", "val")
SIDE_RANGE = (160, 256)
# Outlines are drawn on a grid this many times finer than the image, for smooth edges and polygons.
FINE = 4
MIN_VISIBLE_PIXELS = 60
MIN_VISIBLE_FRACTION = 0.55


@dataclass
class Instance:
    """One drawn object.

    Args:
        label: Index into ``CLASSES``.
        fine_mask: Visible part on the fine grid, bool, (H * FINE, W * FINE).
        drawn_pixels: Fine pixels of the object, including hidden ones.
        crowd: Whether this is one region for many objects (COCO's ``iscrowd``).
    """

    label: int
    fine_mask: np.ndarray
    drawn_pixels: int
    crowd: bool = False

    def still_visible(self, cover: np.ndarray) -> bool:
        """Whether enough of the object would stay visible under a further mask."""
        left = np.count_nonzero(self.fine_mask & ~cover)
        return left >= max(MIN_VISIBLE_PIXELS * FINE**2, MIN_VISIBLE_FRACTION * self.drawn_pixels)

    def touches(self, mask: np.ndarray) -> bool:
        """Whether the visible part shares a pixel with a mask."""
        return bool((self.fine_mask & mask).any())


def outline(label: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Contours of a class around the origin, (points, 2) each; a second one is a hole."""
    name = CLASSES[label]
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if name == "disk":
        return [circle]
    if name == "ring":
        return [circle, circle * rng.uniform(0.45, 0.6)]
    if name == "star":
        tips = np.linspace(0, 2 * math.pi, 10, endpoint=False)
        radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.4, 0.5))
        return [np.stack([np.cos(tips), np.sin(tips)], axis=1) * 1.3 * radii[:, None]]
    corners, reach = (3, 1.25) if name == "triangle" else (4, 1.1)
    turns = 2 * math.pi * (np.arange(corners) + 0.5) / corners
    return [np.stack([np.cos(turns), np.sin(turns)], axis=1) * reach]


def draw_outline(
    label: int,
    centre: tuple[float, float],
    radius: float,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Mask of one object on the fine grid of an image of ``shape`` (H, W): turned and squeezed."""
    angle = rng.uniform(0, 2 * math.pi)
    squeeze = rng.uniform(0.65, 1.0)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mask = np.zeros((shape[0] * FINE, shape[1] * FINE), np.uint8)
    for fill, contour in enumerate(outline(label, rng)):
        points = (contour * (1.0, squeeze)) @ turn.T * radius + centre
        cv2.fillPoly(mask, [np.round(points * FINE).astype(np.int32)], 1 - fill)
    return mask.astype(bool)


def texture(
    shape: tuple[int, int], base: np.ndarray, contrast: float, rng: np.random.Generator
) -> np.ndarray:
    """Noise of several scales and stripes around a colour: float32 (H, W, 3) in 0..255."""
    height, width = shape
    field = np.zeros((height, width, 1), np.float32)
    for cells in (2, 5, 12, 40):
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        grown = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        field[..., 0] += grown / math.sqrt(cells)
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 24)
    rows, columns = np.mgrid[:height, :width]
    phase = (rows * math.sin(angle) + columns * math.cos(angle)) * (2 * math.pi / period)
    field[..., 0] += rng.uniform(0, 0.5) * np.sin(phase)
    return np.clip(base + contrast * field, 0, 255).astype(np.float32)


def color(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour in OpenCV's channel order, 0..255; all arguments in 0..1, the hue cyclic."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return 255 * np.array([blue, green, red], np.float32)


def draw_object(image: np.ndarray, label: int, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Blends a textured object into ``image`` in place; ``mask`` is on the fine grid."""
    height, width = image.shape[:2]
    size = (width, height)
    alpha = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
    # Neighbouring classes have a third of their hues in common.
    hue = (label + rng.uniform(-0.75, 0.75)) / len(CLASSES)
    base = color(hue, rng.uniform(0.55, 0.95), rng.uniform(0.55, 0.95))
    image += alpha * (texture((height, width), base, 14, rng) - image)


def add_object(
    instances: list[Instance], shape: tuple[int, int], rng: np.random.Generator, *, tries: int = 30
) -> Instance | None:
    """Draws a new object that hides none of the others too much; often on top of another one."""
    height, width = shape
    for _ in range(tries):
        label = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(9, 15) if rng.random() < 0.18 else rng.uniform(24, 0.27 * min(shape))
        margin = 0.6 * radius
        centre = (rng.uniform(margin, width - margin), rng.uniform(margin, height - margin))
        on_another = bool(instances) and rng.random() < 0.2
        if on_another:
            other = instances[int(rng.integers(len(instances)))]
            rows, columns = np.nonzero(other.fine_mask)
            pick = int(rng.integers(len(rows)))
            reach, angle = 0.8 * radius, rng.uniform(0, 2 * math.pi)
            centre = (
                columns[pick] / FINE + reach * math.cos(angle),
                rows[pick] / FINE + reach * math.sin(angle),
            )
        mask = draw_outline(label, centre, radius, shape, rng)
        pixels = int(np.count_nonzero(mask))
        if pixels < MIN_VISIBLE_PIXELS * FINE**2:
            continue
        if all(
            other.still_visible(mask) if on_another else not other.touches(mask)
            for other in instances
        ):
            return Instance(label, mask, pixels)
    return None


def crowd_region(
    shape: tuple[int, int], rng: np.random.Generator
) -> tuple[Instance, list[np.ndarray]]:
    """Many tiny objects of one class in a corner: a region around them, and their masks."""
    label = int(rng.integers(len(CLASSES)))
    masks = []
    for row in range(3):
        for column in range(4):
            centre = (14.0 + 15 * column + rng.uniform(-2, 2), 14.0 + 15 * row + rng.uniform(-2, 2))
            masks.append(draw_outline(label, centre, rng.uniform(5, 7), shape, rng))
    region = cv2.morphologyEx(
        np.any(masks, axis=0).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((33, 33), np.uint8)
    )
    return Instance(label, region.astype(bool), int(region.sum()), crowd=True), masks


def draw_image(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, list[Instance]]:
    """Draws an image and its objects.

    Args:
        rng: Source of all randomness.
        kind: "objects", "crowd" (objects and one crowd region) or "empty".

    Returns:
        The image, uint8 (H, W, 3) in OpenCV's channel order, and its objects in drawing order.
    """
    height, width = (int(side) for side in rng.integers(SIDE_RANGE[0], SIDE_RANGE[1] + 1, 2))
    shape = (height, width)
    base = color(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.25, 0.8))
    image = texture(shape, base, 30, rng)
    instances: list[Instance] = []
    if kind == "crowd":
        region, tiny_masks = crowd_region(shape, rng)
        instances.append(region)
        for mask in tiny_masks:
            draw_object(image, region.label, mask, rng)
    for _ in range(0 if kind == "empty" else int(rng.integers(3, 7))):
        instance = add_object(instances, shape, rng)
        if instance is None:
            break
        draw_object(image, instance.label, instance.fine_mask, rng)
        for other in instances:
            other.fine_mask &= ~instance.fine_mask
        instances.append(instance)
    image += rng.normal(0, 4, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), instances


def segmentation(instance: Instance) -> list[list[float]] | dict:
    """COCO segmentation of the visible mask: polygons; run lengths for crowds and holes."""
    fine = instance.fine_mask.astype(np.uint8)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # hierarchy[0, i, 3] is the parent: only holes have one.
    has_hole = any(
        hierarchy[0, i, 3] >= 0 and cv2.contourArea(contour) > FINE**2
        for i, contour in enumerate(contours)
    )
    if instance.crowd or has_hole:
        height, width = (side // FINE for side in fine.shape)
        mask = (
            cv2.resize(fine.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.5
        )
        return {"size": [height, width], "counts": run_lengths(mask)}
    polygons = []
    for contour in contours:
        corners = cv2.approxPolyDP(contour, 1.0, closed=True)[:, 0]
        if len(corners) >= 3 and cv2.contourArea(corners) > 4 * FINE**2:
            polygons.append([round(float(v), 2) for v in ((corners + 0.5) / FINE).ravel()])
    return polygons


def run_lengths(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO run lengths: column-major, beginning with the zeros."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [0]])
    changes = np.flatnonzero(np.diff(flat))
    ends = np.concatenate([[0], changes, [mask.size]])
    counts = np.diff(ends).tolist()
    # A mask that ends in a one has its last change at mask.size: drop the empty run behind it.
    return counts[:-1] if counts[-1] == 0 else counts


def annotation(
    instance: Instance, image_id: int, annotation_id: int, shape: tuple[int, int]
) -> dict:
    """The COCO annotation of an object; area and box are those of the stored mask."""
    stored = segmentation(instance)
    encoded = coco_mask.frPyObjects(stored, *shape)
    if isinstance(encoded, list):
        encoded = coco_mask.merge(encoded)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": instance.label + 1,
        "segmentation": stored,
        "area": float(coco_mask.area(encoded)),
        "bbox": [float(v) for v in coco_mask.toBbox(encoded)],
        "iscrowd": int(instance.crowd),
    }


def write_split(folder: Path, index: int, seed: int, count: int) -> Iterator[None]:
    """Writes a split's images, yielding after each, then its annotation file."""
    split = SPLITS[index]
    for path in (folder / split, folder / "annotations"):
        path.mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, count + 1):
        # The first image has a crowd, the second no object: even the smallest split has both.
        kind = {1: "crowd", 2: "empty"}.get(image_id, "objects")
        image, instances = draw_image(random_generator(seed, index, image_id - 1), kind)
        name = f"{image_id:06d}.jpg"
        write_image(folder / split / name, image, cv2.IMWRITE_JPEG_QUALITY, 92)
        height, width = image.shape[:2]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for instance in instances:
            annotations.append(
                annotation(instance, image_id, len(annotations) + 1, (height, width))
            )
        yield
    content = {
        "info": {"description": f"mini COCO, {split}, seed {seed}"},
        "licenses": [],
        "categories": [
            {"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)
        ],
        "images": images,
        "annotations": annotations,
    }
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def make_like_coco(folder: Path) -> None:
    """Renames files and classes to those of COCO 2017; the shapes become its first classes."""
    from dcnv4_mm.integrations import install

    install()
    from mmdet.datasets import CocoDataset

    classes = CocoDataset.METAINFO["classes"]
    for split in SPLITS:
        annotations = folder / "annotations" / f"{split}.json"
        content = json.loads(annotations.read_text())
        content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
        annotations.with_name(f"instances_{split}2017.json").write_text(json.dumps(content))
        annotations.unlink()
        (folder / split).rename(folder / f"{split}2017")


DATASET = GeneratedDataset(
    name="mini_coco",
    format=1,
    write_split=write_split,
    num_train=240,
    num_val=60,
    flags={"as_coco": ("file names and the 80 classes of COCO 2017; needs mmdet", make_like_coco)},
)

if __name__ == "__main__":
    sys.exit(DATASET.main("Write a small COCO-format dataset of drawn shapes."))
