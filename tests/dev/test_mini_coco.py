"""The generated mini COCO dataset, checked through pycocotools and the files themselves."""

import cv2
import numpy as np
import pytest
from helpers import ROOT, run_python

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from pycocotools.coco import COCO

SMALL_AREA = 32**2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mini_coco"
    script = ROOT / "dev" / "generators" / "mini_coco.py"
    run_python(script, folder, "--num-train", 60, "--num-val", 30, cwd=folder.parent)
    return folder


@pytest.fixture(scope="module", params=["train", "val"])
def split(request, written):
    return written / request.param, COCO(written / "annotations" / f"{request.param}.json")


def plain_annotations(coco):
    return [a for a in coco.loadAnns(coco.getAnnIds()) if not a["iscrowd"]]


def test_counts_and_classes(written):
    train, val = (COCO(written / "annotations" / f"{name}.json") for name in ("train", "val"))
    assert (len(train.imgs), len(val.imgs)) == (60, 30)
    assert len(train.cats) >= 4
    assert train.cats == val.cats
    for coco in (train, val):
        assert {a["category_id"] for a in plain_annotations(coco)} == set(coco.cats)
        assert len(plain_annotations(coco)) / len(coco.imgs) >= 3


def test_images_are_jpegs_of_the_stated_size(split):
    folder, coco = split
    for image in coco.imgs.values():
        content = (folder / image["file_name"]).read_bytes()
        assert content[:3] == b"\xff\xd8\xff"
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape == (image["height"], image["width"], 3)
        assert 160 <= min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= 256


def test_area_and_box_are_those_of_the_mask(split):
    _, coco = split
    for record in coco.anns.values():
        mask = coco.annToMask(record)
        rows, columns = np.nonzero(mask)
        assert record["area"] == mask.sum() > 0
        x, y, width, height = record["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_small_overlapping_and_disjoint_masks(split):
    _, coco = split
    records = plain_annotations(coco)
    assert np.mean([r["area"] < SMALL_AREA for r in records]) >= 0.2
    overlapping = 0
    for image_id in coco.imgs:
        masks = [
            coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(imgIds=image_id, iscrowd=False))
        ]
        grown = [cv2.dilate(m, np.ones((5, 5), np.uint8)) for m in masks]
        for i, mask in enumerate(masks):
            others = [m for j, m in enumerate(masks) if j != i]
            overlapping += any((grown[i] & m).any() for m in others)
            # Visible parts share at most the rounding of a polygon's edge.
            assert sum((mask & m).sum() for m in others) <= 0.05 * mask.sum() + 8
    assert overlapping / len(records) >= 0.2


def test_polygons_run_lengths_crowd_and_empty_image(split):
    _, coco = split
    forms = {type(a["segmentation"]) for a in plain_annotations(coco)}
    assert forms == {list, dict}
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    assert crowds
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    assert any(not coco.getAnnIds(imgIds=i) for i in coco.imgs)
    for record in plain_annotations(coco):
        if isinstance(record["segmentation"], list):
            assert all(
                len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in record["segmentation"]
            )


def test_holes_are_holes(generator, split):
    """The middle of a free ring is not part of its mask."""
    _, coco = split
    ring = generator("mini_coco").CLASSES.index("ring") + 1
    rings = [
        a
        for a in plain_annotations(coco)
        if a["category_id"] == ring and isinstance(a["segmentation"], dict)
    ]
    assert len(rings) >= 10
    filled = 0
    for record in rings:
        mask = np.ascontiguousarray(coco.annToMask(record))
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        filled += (
            cv2.drawContours(np.zeros_like(mask), contours, -1, 1, -1).sum() > 1.1 * mask.sum()
        )
    assert filled / len(rings) > 0.9


def test_masks_match_the_images(split):
    """The colours on both sides of an outline differ, so images and masks match."""
    folder, coco = split
    gaps, chance = [], []
    for image_id, image in list(coco.imgs.items())[:20]:
        pixels = cv2.imread(str(folder / image["file_name"])).astype(float)
        for record in coco.loadAnns(coco.getAnnIds(imgIds=image_id, iscrowd=False)):
            for values, mask in (
                (gaps, coco.annToMask(record)),
                (chance, np.flipud(coco.annToMask(record))),
            ):
                kernel = np.ones((3, 3), np.uint8)
                inner = mask.astype(bool) & ~cv2.erode(mask, kernel, iterations=3).astype(bool)
                outer = cv2.dilate(mask, kernel, iterations=3).astype(bool) & ~mask.astype(bool)
                values.append(np.abs(pixels[inner].mean(0) - pixels[outer].mean(0)).max())
    assert np.median(gaps) > 40 > np.median(chance)


@pytest.mark.mmdet
def test_file_names_and_classes_of_coco(generator, tmp_path):
    generate = generator("mini_coco").DATASET.generate
    from mmdet.datasets import CocoDataset

    sizes = {"num_train": 3, "num_val": 2}
    generate(tmp_path / "coco", as_coco=True, **sizes)
    generate(tmp_path / "own", **sizes)
    assert not generate(tmp_path / "coco", as_coco=True, **sizes)
    for split in ("train", "val"):
        coco = COCO(tmp_path / "coco" / "annotations" / f"instances_{split}2017.json")
        own = COCO(tmp_path / "own" / "annotations" / f"{split}.json")
        assert [c["name"] for c in coco.cats.values()] == list(CocoDataset.METAINFO["classes"])
        assert coco.anns == own.anns
        for image in coco.imgs.values():
            content = (tmp_path / "coco" / f"{split}2017" / image["file_name"]).read_bytes()
            assert content == (tmp_path / "own" / split / image["file_name"]).read_bytes()
