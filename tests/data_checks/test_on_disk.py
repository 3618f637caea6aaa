"""Datasets as they lie on the disk: counts, and all faults of the files at once."""

import json

import numpy as np
import pytest

pytest.importorskip("mmengine", reason="mmengine is not installed")
from mmengine.fileio import dump
from PIL import Image

from dcnv4_mm.integrations.data_checks import on_disk


def texts(report):
    return "\n".join(fault.what for fault in report.faults)


@pytest.fixture
def coco(tmp_path):
    """Function that writes four images and their annotations, changed by a function."""

    def write(change=lambda content: None):
        for index in range(4):
            Image.new("RGB", (6, 4)).save(tmp_path / f"{index}.png")
        images = [{"id": i, "file_name": f"{i}.png", "width": 6, "height": 4} for i in range(4)]
        box = {"bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0}
        mask = {"segmentation": [[0, 0, 2, 0, 2, 2]]}
        objects = [{"id": i + 1, "image_id": i, "category_id": 7, **box, **mask} for i in range(3)]
        names = [{"id": 7, "name": "disk"}, {"id": 9, "name": "ring"}]
        content = {"images": images, "annotations": objects, "categories": names}
        change(content)
        (tmp_path / "all.json").write_text(json.dumps(content))
        return tmp_path / "all.json", tmp_path

    return write


def test_counts_of_annotations(coco):
    report = on_disk.check_coco(*coco())
    assert not report.faults
    assert report.classes == {"disk": 3, "ring": 0}
    assert report.counts["images"] == 4
    assert report.counts["images without objects"] == 1
    assert report.counts["objects"] == report.counts["objects with masks"] == 3


def test_all_faults_of_annotations_at_once(coco):
    def change(content):
        content["annotations"][0]["id"] = 0
        content["annotations"][1]["bbox"] = [1, 2, 3, 4]
        content["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]
        del content["annotations"][2]["iscrowd"]
        content["images"][0]["width"] = 60
        content["images"].append({"id": 9, "file_name": "no.png", "width": 1, "height": 1})

    path, folder = coco(change)
    (folder / "3.png").write_bytes(b"")
    found = texts(on_disk.check_coco(path, folder))
    for part in (
        *("annotation id 0", "segmentation", "'iscrowd'", "expected 60 x 4"),
        *("missing images: 1, such as no.png", "empty files: 1, such as 3.png"),
    ):
        assert part in found


def test_boxes_alone_need_no_masks(coco):
    def change(content):
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    assert not on_disk.check_coco(*coco(change)).faults


@pytest.mark.parametrize("text", ["", "[]", '{"images": [1], "categories": []}', "\xff", "{"])
def test_annotations_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "all.json"
    path.write_text(text, encoding="latin-1")
    (fault,) = on_disk.check_coco(path, tmp_path).faults
    assert (fault.where, fault.fatal) == (str(path), True)


@pytest.fixture
def maps(tmp_path):
    """Function that writes an image and a label map per given array."""

    def write(*labels):
        for kind in ("images", "maps"):
            (tmp_path / kind).mkdir()
        for index, values in enumerate(labels):
            Image.new("RGB", (4, 2)).save(tmp_path / "images" / f"{index}.jpg")
            Image.fromarray(np.array(values, np.uint8)).save(tmp_path / "maps" / f"{index}.png")
        return tmp_path / "images", tmp_path / "maps"

    return write


def test_counts_of_label_maps(maps):
    folders = maps([[0, 0, 1, 1]] * 2, [[1, 1, 255, 255]] * 2)
    report = on_disk.check_label_maps(*folders, classes=("ground", "thing"))
    assert not report.faults
    assert report.classes == {"ground": 4, "thing": 8}
    report = on_disk.check_label_maps(*folders)
    assert not report.faults
    assert report.counts["pixels of label 1"] == 8


@pytest.mark.parametrize("classes", [(), ("ground", "thing")])
@pytest.mark.parametrize(
    ("values", "reduce_zero_label"),
    [((0, 255), False), ((255, 255), False), ((0, 0), False), ((0, 1), True), ((0, 255), True)],
)
def test_label_maps_that_teach_nothing(maps, classes, values, reduce_zero_label):
    report = on_disk.check_label_maps(
        *maps([[*values] * 2] * 2), classes=classes, reduce_zero_label=reduce_zero_label
    )
    assert "255 is ignored: write 1" in texts(report)


def test_all_faults_of_label_maps_at_once(maps):
    good = [[0, 0, 1, 1]] * 2
    images, folder = maps(good, good, good, [[0, 0, 2, 9]] * 2, [[0, 1]], good)
    (folder / "0.png").unlink()
    (images / "1.jpg").unlink()
    Image.new("RGB", (4, 2)).save(folder / "2.png")
    (folder / "5.png").write_bytes(b"no image")
    report = on_disk.check_label_maps(images, folder, classes=("ground", "thing"))
    found = texts(report)
    for part in (
        *("missing label maps: 1, such as 0.png", "label maps without an image: 1"),
        *("2.png (RGB)", "3.png (2, 9)", "2 x 1 and 4 x 2", "5.png"),
    ):
        assert part in found
    assert len(report.faults) == 6


def test_class_folders(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    report = on_disk.check_class_folders(tmp_path)
    assert not report.faults
    assert report.classes == {"cat": 1, "dog": 1}
    (tmp_path / "dog" / "1.png").rename(tmp_path / "1.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"no image")
    found = texts(on_disk.check_class_folders(tmp_path))
    for part in ("outside of the class folders: 1", "without an image: 1, such as dog", "2.png"):
        assert part in found


def info(token, **changes):
    camera = {"img_path": f"{token}.jpg", "cam2img": [], "lidar2cam": []}
    objects = [{"bbox_label_3d": 0}, {"bbox_label_3d": -1}]
    rest = {"timestamp": 1.0, "ego2global": [], "images": {"CAM_FRONT": camera}}
    return {"token": token, "scene_token": "s", "instances": objects, **rest, **changes}


def test_infos(tmp_path):
    folder = tmp_path / "samples" / "CAM_FRONT"
    folder.mkdir(parents=True)
    for token in ("a", "b"):
        (folder / f"{token}.jpg").write_bytes(b"image")
    path = tmp_path / "infos.pkl"
    content = {"metainfo": {"categories": {"car": 0, "bus": 1}}, "data_list": [info("a")]}
    dump(content, path)
    report = on_disk.check_nuscenes(path, tmp_path)
    assert not report.faults
    assert report.classes == {"car": 1, "bus": 0}
    assert report.counts["samples"] == report.counts["scenes"] == 1
    bad = info("b", images={"CAM_FRONT": {"img_path": "c.jpg", "lidar2cam": []}})
    del bad["scene_token"]
    dump({**content, "data_list": [info("a"), bad]}, path)
    found = texts(on_disk.check_nuscenes(path, tmp_path))
    for part in ("'scene_token'", "'cam2img': 1, such as CAM_FRONT of b", "CAM_FRONT/c.jpg"):
        assert part in found
    dump({"infos": [], "metadata": {}}, path)
    assert "update_infos_to_v2" in texts(on_disk.check_nuscenes(path, tmp_path))


def test_splits_are_compared(coco):
    path, folder = coco()
    reports = {"train": on_disk.check_coco(path, folder)}
    coco(lambda content: content["categories"].reverse())
    reports["val"] = on_disk.check_coco(path, folder)
    classes, images = on_disk.compare_splits(reports)
    assert "*   0 disk" in classes.what
    assert "4 images are in train too" in images.what
