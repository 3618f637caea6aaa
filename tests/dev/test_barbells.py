"""The generator of barbells: its images match its COCO annotations."""

import cv2
import numpy as np
from pycocotools.coco import COCO


def test_objects_match_their_annotations(generator, tmp_path):
    barbells = generator("barbells")
    assert barbells.DATASET.generate(tmp_path / "set", num_train=4, num_val=2)
    coco = COCO(tmp_path / "set" / "annotations" / "train.json")
    assert [c["name"] for c in coco.cats.values()] == list(barbells.CLASSES)
    assert len(coco.imgs) == 4
    for image_id, info in coco.imgs.items():
        image = cv2.imread(str(tmp_path / "set" / "train" / info["file_name"]))
        assert image.shape == (info["height"], info["width"], 3)
        entries = coco.imgToAnns[image_id]
        assert 2 <= len(entries) <= 4
        masks = np.array([coco.annToMask(entry) for entry in entries])
        assert masks.sum(0).max() == 1
        for entry, mask in zip(entries, masks, strict=True):
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert entry["bbox"] == list(map(float, box))
            assert entry["area"] == mask.sum()
            # The colors of the ends define the class.
            pixels = image[mask.astype(bool)].astype(int)
            counts = {
                name: np.abs(pixels - color).max(1).__lt__(50).sum()
                for name, color in barbells.COLORS.items()
            }
            first, last = barbells.CLASSES[entry["category_id"] - 1].split("-")
            assert min(counts[first], counts[last]) > 40
