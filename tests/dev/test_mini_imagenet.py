"""The generated mini ImageNet, and the check of an ImageNet's folders."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

GENERATORS = Path(__file__).resolve().parents[2] / "dev" / "generators"


@pytest.fixture(scope="module")
def generator():
    sys.path.insert(0, str(GENERATORS))
    try:
        import mini_imagenet

        yield mini_imagenet
    finally:
        sys.path.remove(str(GENERATORS))


@pytest.fixture
def small_set(generator, tmp_path):
    folder = tmp_path / "mini"
    assert generator.generate(folder, num_train=2, num_val=1)
    return folder


def test_folders_and_pictures(generator, small_set):
    names = [path.name for path in sorted((small_set / "train").iterdir())]
    assert names == list(generator.CLASSES)
    assert len(names) == 10
    for split, count in (("train", 2), ("val", 1)):
        for name in names:
            files = sorted((small_set / split / name).iterdir())
            assert [f.suffix for f in files] == [".JPEG"] * count
            for file in files:
                height, width = cv2.imread(str(file)).shape[:2]
                assert 80 <= min(height, width) <= max(height, width) <= 128


def test_a_seed_fixes_every_picture(generator, small_set, tmp_path):
    generator.generate(tmp_path / "again", num_train=2, num_val=1)
    generator.generate(tmp_path / "other", num_train=2, num_val=1, seed=1)
    files = [path.relative_to(small_set) for path in small_set.rglob("*.JPEG")]
    contents = {(small_set / file).read_bytes() for file in files}
    assert len(contents) == len(files) == 30
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (small_set / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() not in contents


def test_colour_tells_warm_from_cold(generator):
    """In the middle of a disk: more red than blue, or the other way round."""
    for warmth, sign in (("warm", 1), ("cold", -1)):
        for seed in range(8):
            picture = generator.draw_image(f"{warmth}_disk", np.random.default_rng(seed))
            height, width = picture.shape[:2]
            middle = picture[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4]
            blue, _, red = middle.reshape(-1, 3).mean(0)
            assert sign * (red - blue) > 20


def test_finished_sets_are_kept_and_others_refused(generator, small_set, tmp_path):
    generate = generator.generate
    assert not generate(small_set, num_train=2, num_val=1)
    with pytest.raises(ValueError, match="give another folder, or remove"):
        generate(small_set, num_train=3, num_val=1)
    with pytest.raises(ValueError, match="at least 1 picture, got 0"):
        generate(tmp_path / "new", num_train=0)
    with pytest.raises(ValueError, match="must not be negative"):
        generate(tmp_path / "new", seed=-1)
    assert not (tmp_path / "new").exists()


def test_messages_of_the_generator(small_set):
    result = subprocess.run(
        [sys.executable, GENERATORS / "mini_imagenet.py", small_set, "--num-train", "5"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("mini_imagenet.py: error: ")
    assert "Traceback" not in result.stderr
