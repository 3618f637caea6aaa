"""The generated set of shapes that a U-Net learns to draw."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

GENERATORS = Path(__file__).resolve().parents[2] / "dev" / "generators"


@pytest.fixture(scope="module")
def shapes():
    """The generator."""
    sys.path.insert(0, str(GENERATORS))
    try:
        import mini_shapes

        yield mini_shapes
    finally:
        sys.path.remove(str(GENERATORS))


def test_folders_and_pictures(shapes, tmp_path):
    assert shapes.generate(tmp_path / "set", num_train=2, num_val=1)
    for split, count in (("train", 2), ("val", 1)):
        folders = sorted((tmp_path / "set" / split).iterdir())
        assert [folder.name for folder in folders] == list(shapes.CLASSES)
        for folder in folders:
            pictures = [cv2.imread(str(path)) for path in folder.iterdir()]
            assert [picture.shape for picture in pictures] == [(32, 32, 3)] * count
            # A shape stands out from its ground.
            assert all(picture.mean(2).std() > 10 for picture in pictures)


def test_the_seed_fixes_every_picture(shapes, tmp_path):
    def contents(name, **sizes):
        shapes.generate(tmp_path / name, **sizes)
        return {
            path.relative_to(tmp_path / name).as_posix(): path.read_bytes()
            for path in (tmp_path / name).rglob("*.png")
        }

    few, many = (contents(f"{n}", num_train=n, num_val=1) for n in (1, 2))
    assert few.items() <= many.items()
    assert len(set(many.values())) == len(many) == 12
    assert contents("other", num_train=1, num_val=1, seed=1).keys() == few.keys()
    other = (tmp_path / "other" / "train" / "ring" / "ring_00001.png").read_bytes()
    assert other != few["train/ring/ring_00001.png"]


@pytest.mark.parametrize("name", ["cross", "ring", "square", "triangle"])
def test_a_shape_lies_inside_of_its_picture(shapes, name):
    for radius in (9.0, 13.0):
        for corner in (-1, 1):
            centre = 16 + corner * np.full(2, 15 - radius)
            share = shapes.outline(name, centre, radius, np.pi / 4)
            assert not share[[0, -1]].any()
            assert not share[:, [0, -1]].any()
            assert share.max() == 1


def test_what_is_asked_wrongly(shapes, tmp_path):
    with pytest.raises(ValueError, match="each class needs at least 1 picture, got 0 and 1"):
        shapes.generate(tmp_path / "set", num_train=0, num_val=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    command = [sys.executable, GENERATORS / "mini_shapes.py", tmp_path / "other"]
    assert subprocess.run(command, capture_output=True).returncode == 1
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]
