"""The generator of barbells: what its COCO files hold, and that they depend on the seed alone."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO


@pytest.fixture
def barbells(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "dev" / "generators"))
    import barbells

    return barbells


def test_objects_match_their_annotations(barbells, tmp_path, capsys):
    assert barbells.generate(tmp_path / "set", num_train=4, num_val=2)
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
            # Which colors the ends have decides the class.
            pixels = image[mask.astype(bool)].astype(int)
            counts = {
                name: np.abs(pixels - color).max(1).__lt__(50).sum()
                for name, color in barbells.COLORS.items()
            }
            first, last = barbells.CLASSES[entry["category_id"] - 1].split("-")
            assert min(counts[first], counts[last]) > 40


def test_the_seed_decides(barbells, tmp_path):
    def content(name, **settings):
        barbells.generate(tmp_path / name, num_train=2, num_val=2, **settings)
        files = sorted((tmp_path / name).rglob("*.png"))
        return [path.read_bytes() for path in files]

    first = content("a")
    assert len(set(first)) == 4
    assert content("b") == first
    assert content("c", seed=1) != first
    assert not barbells.generate(tmp_path / "a", num_train=2, num_val=2)
    assert json.loads((tmp_path / "a" / "barbells.json").read_text())["seed"] == 0
    with pytest.raises(ValueError, match="a holds"):
        barbells.generate(tmp_path / "a", num_train=3, num_val=2)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        barbells.generate(tmp_path / "d", num_train=1)
