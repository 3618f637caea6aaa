"""The generated mini ADE20K set and the check of a folder with ADE20K."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"training": 10, "validation": 3}


def run(tool, *arguments):
    folder = "dev/generators" if tool.startswith("mini") else "tools/analysis_tools"
    command = [sys.executable, ROOT / folder / tool, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mini_ade20k"
    result = run("mini_ade20k.py", folder, "--num-train", 10, "--num-val", 3)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def copy(written, tmp_path):
    """A copy of the set that a test may damage."""
    import shutil

    return Path(shutil.copytree(written, tmp_path / "set"))


def pairs(folder, split):
    for picture in sorted((folder / "images" / split).iterdir()):
        yield picture, folder / "annotations" / split / f"{picture.stem}.png"


@pytest.mark.parametrize("split", SPLITS)
def test_every_picture_has_a_palette_label_map(written, split):
    found = list(pairs(written, split))
    assert len(found) == SPLITS[split] == len(list((written / "annotations" / split).iterdir()))
    seen = set()
    for picture, labels in found:
        with Image.open(picture) as image, Image.open(labels) as label_map:
            assert image.format == "JPEG"
            assert (label_map.format, label_map.mode) == ("PNG", "P")
            assert image.size == label_map.size
            seen |= set(np.unique(np.asarray(label_map)).tolist())
    # Ignored regions, the ground, and shapes.
    assert {0, 1} < seen <= set(range(7))
    assert split != "training" or seen == set(range(7))


def test_the_second_picture_is_all_ground(written):
    _, labels = list(pairs(written, "training"))[1]
    assert set(np.unique(np.asarray(Image.open(labels)))) == {1}


def test_labels_lie_where_the_shapes_are(written):
    """Across an outline the picture changes more than elsewhere."""
    inside, across = [], []
    for picture, labels in pairs(written, "training"):
        pixels = np.asarray(Image.open(picture).convert("RGB"), np.float32)
        label_map = np.asarray(Image.open(labels))
        steps = np.abs(np.diff(pixels, axis=1)).mean(axis=2)
        edges = label_map[:, 1:] != label_map[:, :-1]
        shapes = (label_map[:, 1:] > 0) & (label_map[:, :-1] > 0)
        across.append(steps[edges & shapes])
        inside.append(steps[~edges & shapes])
    assert np.concatenate(across).mean() > 3 * np.concatenate(inside).mean()


def test_the_same_seed_gives_the_same_set(written, tmp_path):
    again = tmp_path / "again"
    run("mini_ade20k.py", again, "--num-train", 10, "--num-val", 3)
    for split in SPLITS:
        for one, other in zip(pairs(written, split), pairs(again, split), strict=True):
            assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    names = [path.name for path, _ in pairs(written, "validation")]
    assert names == ["ADE_val_00000001.jpg", "ADE_val_00000002.jpg", "ADE_val_00000003.jpg"]


def test_a_finished_set_is_kept_and_another_refused(written):
    assert "kept" in run("mini_ade20k.py", written, "--num-train", 10, "--num-val", 3).stdout
    refused = run("mini_ade20k.py", written, "--num-train", 11, "--num-val", 3)
    assert refused.returncode == 1
    assert "give another folder" in refused.stderr
    assert "at least 2" in run("mini_ade20k.py", written, "--num-val", 1).stderr


def test_check_of_a_whole_set(written):
    result = run("check_ade20k.py", written, "--labels")
    assert result.returncode == 0, result.stderr
    assert "every picture with its label map" in result.stdout


def problem(folder, *options):
    result = run("check_ade20k.py", folder, *options)
    assert result.returncode == 1
    return result.stderr


def test_check_names_what_is_missing_and_the_command(copy, tmp_path):
    (copy / "annotations" / "validation" / "ADE_val_00000002.png").unlink()
    message = problem(copy)
    assert "lacks the label maps of 1 of 3 pictures, such as ADE_val_00000002.png" in message
    assert "curl -LO" in message
    assert f"{tmp_path / 'none' / 'images' / 'training'} is missing" in problem(tmp_path / "none")


def test_check_counts_the_real_set(copy):
    (copy / "mini_ade20k.json").unlink()
    assert "holds 10 pictures instead of 20210" in problem(copy)


def test_check_reads_labels_on_request(copy):
    folder = copy / "annotations" / "training"
    Image.fromarray(np.full((4, 5), 151, np.uint8)).save(folder / "ADE_train_00000001.png")
    size = Image.open(copy / "images" / "training" / "ADE_train_00000002.jpg").size
    Image.new("L", size, 151).save(folder / "ADE_train_00000002.png")
    Image.new("RGB", size).save(folder / "ADE_train_00000003.png")
    (folder / "ADE_train_00000004.png").write_bytes(b"no picture")
    assert run("check_ade20k.py", copy).returncode == 0
    lines = problem(copy, "--labels").splitlines()
    assert len(lines) == 4
    assert "ADE_train_00000001.png has 5 x 4 pixels" in lines[0]
    assert "ADE_train_00000002.png has the labels [151], expected are 0 to 150" in lines[1]
    assert "ADE_train_00000003.png has pixels of the kind 'RGB'" in lines[2]
    assert "ADE_train_00000004.png or its picture is damaged" in lines[3]


@pytest.mark.parametrize("tool", ["mini_ade20k.py", "check_ade20k.py"])
def test_help(tool):
    result = run(tool, "-h")
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout
