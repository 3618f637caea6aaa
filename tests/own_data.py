"""A tiny dataset of rectangles in the layouts that docs/own_data describes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bolt", "nut", "washer")
HEIGHT, WIDTH = 72, 96


def write(root: Path, num_train: int = 4, num_val: int = 2) -> None:
    """Writes images, COCO files, label maps and class folders below ``root``."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        images, annotations = [], []
        for index in range(count):
            name = f"{index}.jpg"
            image = rng.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            # One image without objects, which is legal.
            for label in range(len(CLASSES) if index != num_train - 1 else 0):
                x, y, side = 4 + 30 * label, int(rng.integers(4, 40)), 24
                image[y : y + side, x : x + side] = 60 * (label + 1) + 40
                labels[y : y + side, x : x + side] = label + 1
                corners = [x, y, x + side, y, x + side, y + side, x, y + side]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": label + 1,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
            images.append({"id": index, "file_name": name, "width": WIDTH, "height": HEIGHT})
            # Detection, segmentation, classification.
            targets = [root / split / name, root / "images" / split / name]
            targets += [root / "folders" / split / c / f"{index}.jpg" for c in CLASSES]
            for path in targets:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
            path = root / "labels" / split / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = root / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
