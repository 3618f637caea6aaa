"""mmdet's data: what does not fit is refused before the first iteration, what is legal trains."""

import copy
import gc
import json
from contextlib import nullcontext

import pytest

pytestmark = pytest.mark.mmdet

pytest.importorskip("mmdet", reason="mmdet is not installed")
from mmdet.utils import register_all_modules
from PIL import Image

from dcnv4_mm.integrations.data_checks import DataError

CLASSES = ("disk", "ring", "star")
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "PackDetInputs"},
]
SQUARE = [[8, 8, 28, 8, 28, 28, 8, 28]]


def content():
    """Four images of 64 x 48 pixels: two objects, a crowd, none, one object; ids with gaps."""
    images = [{"id": 10 * i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(4)]
    box = {"bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0, "segmentation": SQUARE}
    crowd = {**box, "iscrowd": 1, "segmentation": {"counts": [0, 3072], "size": [48, 64]}}
    places = [(0, 3, box), (0, 5, box), (10, 3, crowd), (30, 9, box)]
    annotations = [
        {"id": 2 * number + 1, "image_id": image, "category_id": category, **rest}
        for number, (image, category, rest) in enumerate(places)
    ]
    names = zip((3, 5, 9), CLASSES, strict=True)
    categories = [{"id": identifier, "name": name} for identifier, name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def folder(tmp_path):
    register_all_modules(init_default_scope=False)
    for index in range(4):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{index}.jpg")
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text(json.dumps(content()))
    return tmp_path


@pytest.fixture
def run(folder, make_runner):
    """Function that trains an epoch, with some settings changed."""

    def train(*, train=(), val=(), evaluator="val.json", classes=3, **metric):
        data = {
            "type": "CocoDataset",
            "data_root": str(folder),
            "data_prefix": {"img": ""},
            "metainfo": {"classes": CLASSES},
            "pipeline": PIPELINE,
            "filter_cfg": {"filter_empty_gt": True, "min_size": 32},
        }
        val = {**data, "ann_file": "val.json", "test_mode": True, **dict(val)}
        train = {**data, "ann_file": "train.json", **dict(train)}
        evaluator = {"type": "CocoMetric", "ann_file": str(folder / evaluator), **metric}
        make_runner("mmdet", train, val, evaluator, bbox_head={"num_classes": classes}).train()

    return train


def rewrite(folder, name, change):
    changed = copy.deepcopy(content())
    change(changed)
    (folder / name).write_text(json.dumps(changed))


def test_what_is_legal_trains(run):
    run()


def test_a_subset_of_the_categories_is_legal(run):
    data = {"metainfo": {"classes": ("disk", "star")}}
    run(train=data, val=data, classes=2)


@pytest.mark.parametrize("name", ["0.jpg", "renamed.jpg"])
def test_the_garbage_collector_pauses_while_a_file_is_read_only(run, folder, monkeypatch, name):
    from dcnv4_mm.integrations.data_checks import annotation_files

    seen, find_coco_faults = [], annotation_files.find_coco_faults

    def spy(*args):
        seen.append(gc.isenabled())
        return find_coco_faults(*args)

    monkeypatch.setattr(annotation_files, "find_coco_faults", spy)
    (folder / "0.jpg").rename(folder / name)
    with nullcontext() if name == "0.jpg" else pytest.raises(DataError):
        run()
    assert seen
    assert not any(seen)
    assert gc.isenabled()


def reorder(coco):
    coco["categories"] = coco["categories"][::-1]


def rename(coco):
    coco["categories"][1]["name"] = "Ring"


def drop(coco):
    del coco["categories"][1]


@pytest.mark.parametrize("name", ["train.json", "val.json"])
@pytest.mark.parametrize("change", [reorder, rename, drop])
def test_other_categories_are_shown_beside_the_classes(run, folder, name, change):
    rewrite(folder, name, change)
    with pytest.raises(DataError, match="by the order of categories in the file") as error:
        run(evaluator=name if name == "val.json" else "val.json")
    assert f"{name}\n" in str(error.value)
    assert "metainfo.classes of" in str(error.value)
    assert "*   1 ring" in str(error.value) or "*   0 disk" in str(error.value)


def remove(field):
    def change(coco):
        del coco["annotations"][1][field]

    return change


def put(field, value, kind="annotations"):
    def change(coco):
        coco[kind][1][field] = value

    return change


BOX = "bbox is not .x, y, width, height. in numbers: such as annotation 3 of image 0.jpg"
MASK = "segmentation is not polygons of at least 3 points"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("bbox"), "1 annotation without 'bbox': such as annotation 3 of image 0.jpg"),
        (remove("area"), "1 annotation without 'area'"),
        (remove("iscrowd"), "1 annotation without 'iscrowd'"),
        (remove("segmentation"), "1 annotation without 'segmentation'"),
        (put("segmentation", []), MASK),
        (put("segmentation", [[1, 2, 3, 4]]), MASK),
        (put("bbox", [1, 2, None, 4]), BOX),
        (put("bbox", [1, 2, 3]), BOX),
        (put("id", 0), "annotation id 0"),
        (put("id", 1), "1 annotation id in use more than once: 1"),
        (put("image_id", 77), "1 annotation of an image that is not listed"),
        (put("category_id", 77), "1 annotation of a category that is not listed"),
        (put("id", 0, "images"), "1 image id in use more than once: 0"),
        (put("width", 48, "images"), "64 x 48 pixels, the file lists 48 x 48"),
        (put("file_name", "none.jpg", "images"), "1 of 4 images are missing, such as .*none.jpg"),
        (put("width", "64", "images"), "1 image whose width or height is not a positive number"),
        (put("area", None), "1 annotation whose area is not a number"),
        (put("area", 0), "1 of 4 annotations would be dropped .* annotation 3 with bbox"),
        (put("bbox", [0.1, 0.1, 0.4, 0.5]), "1 of 4 annotations would be dropped"),
        (put("bbox", [70, 8, 20, 20]), "1 of 4 annotations would be dropped"),
        (put("segmentation", {"counts": [0, 3072], "size": [64, 48]}), MASK),
    ],
)
def test_faults_of_a_file(run, folder, change, message):
    rewrite(folder, "val.json", change)
    with pytest.raises(DataError, match=message) as error:
        run()
    assert str(folder / "val.json") in str(error.value)


def test_corners_instead_of_sizes(run, folder):
    def change(coco):
        box = coco["annotations"][0]
        corners = ([8, 8, 28, 28], [30, 10, 60, 40], [20, 20, 50, 47])
        coco["annotations"] = [
            {**box, "id": number + 1, "bbox": corners[number % 3]} for number in range(9)
        ]

    rewrite(folder, "train.json", change)
    with pytest.raises(DataError, match=r"6 of 9 end outside .* annotation 2 with bbox .30, 10"):
        run()


def test_images_that_are_not_read_may_be_missing(run, folder):
    (folder / "2.jpg").unlink()
    with pytest.raises(DataError, match="1 of 4 images are missing"):
        run()
    everything = {"filter_cfg": None}
    with pytest.raises(DataError, match=r"(?s)train.json.*1 of 4 images are missing.*val.json"):
        run(train=everything)
    run(train={"indices": 2}, val={"indices": 2})


def test_training_alone_does_not_need_what_only_scores_need(run, folder):
    rewrite(folder, "train.json", remove("iscrowd"))
    run()


def test_masks_are_needed_where_they_are_loaded(run, folder):
    for name in ("train.json", "val.json"):
        rewrite(folder, name, put("segmentation", []))
    boxes = {"pipeline": [PIPELINE[0], {"type": "LoadAnnotations", "with_bbox": True}, PIPELINE[2]]}
    run(train=boxes, val=boxes)


def test_all_faults_are_reported_at_once(run, folder):
    rewrite(folder, "train.json", rename)
    rewrite(folder, "val.json", remove("iscrowd"))
    with pytest.raises(DataError) as error:
        run(classes=80)
    for part in ("'iscrowd'", "Ring", "num_classes=80", "check_data = False"):
        assert part in str(error.value)


def test_forgotten_classes_of_the_validation(run):
    with pytest.raises(DataError, match=r"80 classes in metainfo\.classes .*num_classes=3"):
        run(val={"metainfo": {}})


@pytest.mark.parametrize(
    "change",
    [put("file_name", "2.jpg", "images"), put("bbox", [9, 9, 20, 20]), reorder, rename],
)
def test_an_evaluator_with_another_file(run, folder, change):
    rewrite(folder, "other.json", change)
    # False is the default of a dataset.
    for test_mode in (True, False):
        run(val={"test_mode": test_mode})
        with pytest.raises(DataError, match=r"val_evaluator\n.*ann_file holds other images"):
            run(val={"test_mode": test_mode}, evaluator="other.json")


def test_ids_that_do_not_ascend_spoil_the_table_of_classes(run, folder):
    def change(coco):
        coco["categories"][0]["id"] = 11
        for annotation in coco["annotations"]:
            if annotation["category_id"] == 3:
                annotation["category_id"] = 11

    rewrite(folder, "val.json", change)
    run()
    with pytest.raises(DataError, match="do not ascend"):
        run(classwise=True)


def test_a_turned_image(run, folder):
    image = Image.new("RGB", (64, 48))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "1.jpg", exif=exif)
    with pytest.raises(DataError, match=r"48 x 64 pixels, the file lists 64 x 48 \(EXIF"):
        run()

    def turn(coco):
        coco["images"][1] |= {"width": 48, "height": 64}
        coco["annotations"][2]["segmentation"]["size"] = [64, 48]

    for name in ("train.json", "val.json"):
        rewrite(folder, name, turn)
    run()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"metainfo": {"classes": ("a", "b", "c")}}, r"4 have no object .*(?s:.*)\*   0 a"),
        ({"filter_cfg": {"min_size": 500}}, "4 are smaller than 500 pixels"),
    ],
)
def test_nothing_is_left_to_train_on(run, data, message):
    with pytest.raises(DataError, match=f"none of its 4 images is left.*{message}"):
        run(train=data)
