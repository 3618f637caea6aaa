"""The generated mini ADE20K dataset."""

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
    command = [sys.executable, ROOT / "dev" / "generators" / tool, *map(str, arguments)]
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


def test_help():
    result = run("mini_ade20k.py", "-h")
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout
