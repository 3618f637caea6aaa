"""check_dataset.py: tables of counts and faults, for data of one's own, known sets and configs."""

import json
import shutil

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")

pytestmark = pytest.mark.mmdet

NANO = "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco"
MINI_COCO = ("data/mini_coco", "--num-train", 3, "--num-val", 2)
FILES = ("--train", "data/mini_coco/annotations/train.json", "data/mini_coco/train")
FILES += ("--val", "data/mini_coco/annotations/val.json", "data/mini_coco/val")


@pytest.fixture
def check(run_tool, capsys, tmp_path):
    """Function that runs the tool; returns its exit status, the tables of counts and of faults."""

    def run(*arguments):
        capsys.readouterr()
        result = run_tool("check_dataset.py", *arguments, cwd=tmp_path)
        return result.message, result.stdout, result.stderr

    return run


@pytest.fixture
def mini_coco(run_tool, tmp_path):
    run_tool("mini_coco.py", *MINI_COCO, cwd=tmp_path)
    return tmp_path / "data" / "mini_coco"


def table(text):
    """The numbers of a table of counts, by row."""
    words = [line.rsplit(maxsplit=2) for line in text.splitlines() if line[-1:].isdigit()]
    return {name.strip(): tuple(map(int, numbers)) for name, *numbers in words}


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_own_annotations(check, mini_coco):
    status, counts, _ = check("coco", *FILES)
    assert status is None
    assert table(counts)["images"] == (3, 2)
    rewrite(mini_coco / "annotations" / "val.json", lambda c: c["categories"].reverse())
    rewrite(mini_coco / "annotations" / "train.json", lambda c: c["annotations"][0].update(id=0))
    (mini_coco / "val" / "000002.jpg").unlink()
    status, _, faults = check("coco", *FILES)
    assert status == 1
    for part in ("annotation id 0", "another order, than train", "missing images: 1"):
        assert part in faults


def test_a_config(check, mini_coco):
    status, counts, faults = check("--config", NANO)
    assert status is None, faults
    assert table(counts)["images"] == (3, 2)
    rewrite(
        mini_coco / "annotations" / "val.json", lambda c: c["categories"][0].update(name="other")
    )
    options = ("--cfg-options", "model.roi_head.bbox_head.num_classes=9")
    status, _, faults = check("--config", NANO, *options)
    assert status == 1
    for part in ("num_classes=9", "*   0", "metainfo.classes of val_dataloader"):
        assert part in faults


def test_whether_a_config_would_fit_other_files(check, mini_coco):
    moved = mini_coco.rename(mini_coco.with_name("mine"))
    files = [part.replace("mini_coco", "mine") for part in FILES]
    rewrite(moved / "annotations" / "train.json", lambda c: c["annotations"][0].pop("iscrowd"))
    status, counts, faults = check("coco", *files, "--config", NANO)
    assert status == 1
    assert table(counts)["images"] == (3, 2)
    # Nothing but that fault of a file: the config fits.
    assert len(faults.strip().splitlines()) == 2
    assert "'iscrowd'" in faults


def test_missing_files_of_a_known_set_name_the_archive(check, run_tool, tmp_path):
    run_tool("mini_coco.py", *MINI_COCO[:1], "--as-coco", *MINI_COCO[1:], cwd=tmp_path)
    root = tmp_path / "data" / "mini_coco"
    assert check("coco2017", "data/mini_coco")[0] is None
    (root / "mini_coco.json").unlink()
    faults = check("coco2017", "data/mini_coco")[2]
    assert "3 images, the public dataset has 118287" in faults
    assert "annotations_trainval2017.zip -d data/mini_coco" in faults
    (root / "mini_coco.json").touch()
    shutil.rmtree(root / "val2017")
    faults = check("coco2017", "data/mini_coco")[2]
    assert "val2017.zip -d data/mini_coco" in faults
    assert "train2017.zip" not in faults


@pytest.mark.mmseg
def test_ade20k(check, run_tool, tmp_path):
    run_tool("mini_ade20k.py", "data/ADE", "--num-train", 3, "--num-val", 2, cwd=tmp_path)
    status, counts, faults = check("ade20k", "data/ADE")
    assert status is None, faults
    assert table(counts)["label maps"] == (3, 2)
    next((tmp_path / "data/ADE/annotations/validation").iterdir()).unlink()
    faults = check("ade20k", "data/ADE")[2]
    assert "missing label maps: 1" in faults
    assert "ADEChallengeData2016.zip -d data" in faults
    config = "upernet_flash-internimage-nano_1xb8-500it_mini-ade20k"
    (tmp_path / "data/ADE").rename(tmp_path / "data/mini_ade20k")
    status, counts, faults = check("--config", config)
    assert status == 1
    assert "missing label maps: 1" in faults
    assert table(counts)["images"] == (3, 2)


@pytest.mark.mmpretrain
def test_class_folders(check, run_tool, tmp_path):
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    sizes = ("--num-train", 2, "--num-val", 1)
    run_tool("mini_imagenet.py", "data/mini_imagenet", *sizes, cwd=tmp_path)
    folders = ("--train", "data/mini_imagenet/train", "--val", "data/mini_imagenet/val")
    assert check("folders", *folders)[0] is None
    config = "flash-internimage-nano_1xb32-40e_mini-imagenet"
    status, counts, faults = check("--config", config)
    assert status is None, faults
    assert table(counts)["images"] == (20, 10)
    (tmp_path / "data/mini_imagenet/val/warm_star").rename(tmp_path / "data/mini_imagenet/val/a")
    for arguments in (("folders", *folders), ("--config", config)):
        status, _, faults = check(*arguments)
        assert status == 1
        assert "* " in faults
        assert "warm_star" in faults


@pytest.mark.parametrize(
    "arguments", [(), ("coco",), ("coco", "--train", "one.json"), ("coco2017",), ("folders", "x")]
)
def test_what_is_given_wrongly(check, arguments):
    assert check(*arguments)[0] == 2
