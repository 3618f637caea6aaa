"""Writes COCO, ADE20K and nuScenes datasets of a few random images where our configs expect them.

    python dev/tiny_sets.py FOLDER

The unchanged configs then train and test in FOLDER: a check of an installation, not of learning.
Without mmdet3d there is no nuScenes.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from dcnv4_mm.integrations import install

ROOT = Path(__file__).resolve().parents[1]
# Flat, so that the configs, which limit the long side too, do not enlarge them to 1333 x 800.
HEIGHT, WIDTH = 64, 320


def write_coco(folder: Path, rng: np.random.Generator, count: int = 2) -> None:
    """Writes ``count`` images with one box of every class each, as COCO 2017's train and val."""
    install()
    from mmdet.datasets import CocoDataset

    classes = CocoDataset.METAINFO["classes"]
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(classes)]
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        images, annotations = [], []
        for image_id in range(1, count + 1):
            name = f"{image_id:012d}.jpg"
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / name)
            images.append(dict(id=image_id, file_name=name, height=HEIGHT, width=WIDTH))
            for category in categories:
                left, top = int(rng.integers(WIDTH - 40)), int(rng.integers(HEIGHT - 40))
                box = [left, top, 40, 40]
                right, bottom = left + 40, top + 40
                outline = [left, top, right, top, right, bottom, left, bottom]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image_id,
                        category_id=category["id"],
                        bbox=box,
                        area=1600,
                        segmentation=[outline],
                        iscrowd=0,
                    )
                )
        content = dict(images=images, annotations=annotations, categories=categories)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_ade20k(folder: Path, rng: np.random.Generator, count: int = 2) -> None:
    """Writes ``count`` images and label maps of random rectangles for training and validation."""
    for split, prefix in (("training", "ADE_train"), ("validation", "ADE_val")):
        images, maps = folder / "images" / split, folder / "annotations" / split
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for index in range(count):
            name = f"{prefix}_{index + 1:08d}"
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(images / f"{name}.jpg")
            # Cells of 16 x 16 pixels with the labels 0 (ignored) to 150.
            cells = rng.integers(0, 151, (HEIGHT // 16, WIDTH // 16), np.uint8)
            Image.fromarray(cells.repeat(16, 0).repeat(16, 1)).save(maps / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    data = parser.parse_args().folder.resolve() / "data"
    rng = np.random.default_rng(0)
    write_coco(data / "coco", rng)
    write_ade20k(data / "ADEChallengeData2016", rng)
    if find_spec("mmdet3d") is None:
        return
    generator = ROOT / "dev" / "generators" / "synthetic_nuscenes.py"
    options = ("--train", "1", "--keyframes", "3", "--size", "400x225")
    subprocess.run([sys.executable, generator, data / "synthetic_nuscenes", *options], check=True)


if __name__ == "__main__":
    main()
