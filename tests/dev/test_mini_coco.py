"""The generated mini COCO set, checked through pycocotools and the files themselves."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from pycocotools.coco import COCO

SCRIPT = Path(__file__).resolve().parents[2] / "dev" / "generators" / "mini_coco.py"
SMALL_AREA = 32**2


@pytest.fixture(scope="module")
def mini_coco_module():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import mini_coco

        yield mini_coco
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def full_set(mini_coco_module, tmp_path_factory):
    """The set as the quickstart uses it."""
    folder = tmp_path_factory.mktemp("data") / "mini_coco"
    assert mini_coco_module.generate(folder)
    return folder


@pytest.fixture(scope="module", params=["train", "val"])
def split(request, full_set):
    return full_set / request.param, COCO(full_set / "annotations" / f"{request.param}.json")


def plain_annotations(coco):
    return [a for a in coco.loadAnns(coco.getAnnIds()) if not a["iscrowd"]]


def test_counts_and_classes(full_set):
    train, val = (COCO(full_set / "annotations" / f"{name}.json") for name in ("train", "val"))
    assert len(train.imgs) >= 200
    assert len(val.imgs) >= 50
    assert len(train.cats) >= 4
    assert train.cats == val.cats
    for coco in (train, val):
        assert {a["category_id"] for a in plain_annotations(coco)} == set(coco.cats)
        assert len(plain_annotations(coco)) / len(coco.imgs) >= 3


def test_pictures_are_jpegs_of_the_stated_size(split):
    folder, coco = split
    for image in coco.imgs.values():
        content = (folder / image["file_name"]).read_bytes()
        assert content[:3] == b"\xff\xd8\xff"
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (image["height"], image["width"], 3)
        assert 160 <= min(picture.shape[:2]) <= max(picture.shape[:2]) <= 256


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


def test_polygons_run_lengths_crowd_and_empty_picture(split):
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


def test_holes_are_holes(mini_coco_module, split):
    """The middle of a free ring is not part of its mask."""
    _, coco = split
    ring = mini_coco_module.CLASSES.index("ring") + 1
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


def test_masks_match_the_pictures(split):
    """The colours on both sides of an outline differ: pictures and masks belong together."""
    folder, coco = split
    gaps, chance = [], []
    for image_id, image in list(coco.imgs.items())[:20]:
        picture = cv2.imread(str(folder / image["file_name"])).astype(float)
        for record in coco.loadAnns(coco.getAnnIds(imgIds=image_id, iscrowd=False)):
            for values, mask in (
                (gaps, coco.annToMask(record)),
                (chance, np.flipud(coco.annToMask(record))),
            ):
                kernel = np.ones((3, 3), np.uint8)
                inner = mask.astype(bool) & ~cv2.erode(mask, kernel, iterations=3).astype(bool)
                outer = cv2.dilate(mask, kernel, iterations=3).astype(bool) & ~mask.astype(bool)
                values.append(np.abs(picture[inner].mean(0) - picture[outer].mean(0)).max())
    assert np.median(gaps) > 40 > np.median(chance)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_same_seed_same_bytes_other_seed_other_pictures(mini_coco_module, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        mini_coco_module.generate(tmp_path / name, seed=seed, num_train=3, num_val=3)
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    pictures = [name for name in a if name.endswith(".jpg")]
    assert len({a[name] for name in pictures} | {c[name] for name in pictures}) == 2 * len(pictures)


def test_a_finished_set_is_kept_and_foreign_folders_are_refused(mini_coco_module, tmp_path):
    folder = tmp_path / "set"
    assert mini_coco_module.generate(folder, num_train=2, num_val=2)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert not mini_coco_module.generate(folder, num_train=2, num_val=2)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(ValueError, match="another folder"):
        mini_coco_module.generate(folder, num_train=2, num_val=2, seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="no mini_coco set"):
        mini_coco_module.generate(tmp_path / "other", num_train=2, num_val=2)
    assert (tmp_path / "other" / "precious.txt").read_text() == "keep"


@pytest.mark.mmdet
def test_a_set_like_coco(mini_coco_module, tmp_path):
    from mmdet.datasets import CocoDataset

    sizes = {"num_train": 3, "num_val": 2}
    mini_coco_module.generate(tmp_path / "coco", as_coco=True, **sizes)
    mini_coco_module.generate(tmp_path / "own", **sizes)
    assert not mini_coco_module.generate(tmp_path / "coco", as_coco=True, **sizes)
    for split in ("train", "val"):
        coco = COCO(tmp_path / "coco" / "annotations" / f"instances_{split}2017.json")
        own = COCO(tmp_path / "own" / "annotations" / f"{split}.json")
        assert [c["name"] for c in coco.cats.values()] == list(CocoDataset.METAINFO["classes"])
        assert coco.anns == own.anns
        for image in coco.imgs.values():
            picture = (tmp_path / "coco" / f"{split}2017" / image["file_name"]).read_bytes()
            assert picture == (tmp_path / "own" / split / image["file_name"]).read_bytes()


def test_nothing_is_left_of_an_interrupted_run(mini_coco_module, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mini_coco_module, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mini_coco_module.generate(tmp_path / "set", num_train=2, num_val=2)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path / "set"),
        "--num-train",
        "2",
        "--num-val",
        "2",
    ]
    assert "wrote" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "kept" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads((tmp_path / "set" / "mini_coco.json").read_text())["seed"] == 0
    refused = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "another folder" in refused.stderr
    assert "Traceback" not in refused.stderr
