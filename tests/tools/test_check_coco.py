"""check_coco.py: a whole set passes, and for each fault the command that mends it is named."""

import json
import shutil

import pytest

SPLITS = ("train2017", "val2017")
COUNTS = {"train2017": 118287, "val2017": 5000}


@pytest.fixture
def coco(tmp_path):
    """A folder that looks like COCO: all names, two splits of three pictures each."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in SPLITS:
        (root / split).mkdir()
        names = [f"{index:012d}.jpg" for index in range(3)]
        for name in names:
            (root / split / name).write_bytes(b"picture")
        images = [{"file_name": names[i % 3]} for i in range(COUNTS[split])]
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps({"images": images}))
    return root


@pytest.fixture
def check(run_tool, tmp_path):
    """Function that checks the folder, and gives what is wrong with it."""
    return lambda *options: run_tool("check_coco.py", "coco", *options, cwd=tmp_path).message


def test_a_whole_set_passes(check, coco):
    assert check() is None


def break_nothing(root):
    shutil.rmtree(root)


def break_picture(root):
    (root / "val2017" / "000000000001.jpg").unlink()


def break_size(root):
    (root / "train2017" / "000000000002.jpg").write_bytes(b"")


def break_annotations(root):
    (root / "annotations" / "instances_val2017.json").write_text('{"images": [')


def break_count(root):
    (root / "annotations" / "instances_val2017.json").write_text('{"images": []}')


def break_folder(root):
    shutil.rmtree(root / "train2017")


@pytest.mark.parametrize(
    ("damage", "fault", "archive"),
    [
        (break_nothing, "instances_train2017.json is missing", "annotations_trainval2017.zip"),
        (break_picture, "lacks 1667 of 5000 pictures, such as 000000000001.jpg", "val2017.zip"),
        (break_size, "1 empty files, such as 000000000002.jpg", "train2017.zip"),
        (break_annotations, "instances_val2017.json is damaged", "annotations_trainval2017.zip"),
        (break_count, "lists 0 pictures instead of 5000", "annotations_trainval2017.zip"),
        (break_folder, "train2017 is missing", "train2017.zip"),
    ],
)
def test_faults(check, coco, damage, fault, archive):
    damage(coco)
    said = check()
    assert fault in said
    assert f"{archive} -d coco" in said


def test_quick_does_not_look_at_sizes(check, coco):
    break_size(coco)
    assert check("--quick") is None
