"""The dataset generators: seeds, finished folders, errors, and the content of the small ones."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

NAMES = ["barbells", "mini_ade20k", "mini_coco", "mini_imagenet", "mini_shapes"]


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_determines_the_files(generator, name, tmp_path):
    generate = generator(name).DATASET.generate
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert generate(tmp_path / folder, seed=seed, num_train=2, num_val=2)
    a, b, c = (files(tmp_path / folder) for folder in "abc")
    assert a == b
    images = [name for name in a if name.lower().endswith((".jpg", ".jpeg"))]
    images += [name for name in a if name.endswith(".png") and "annotations" not in name]
    contents = {found[image] for image in images for found in (a, c)}
    assert len(contents) == 2 * len(images) >= 8

    assert json.loads(a[f"{name}.json"])["seed"] == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    assert not generate(tmp_path / "a", seed=3, num_train=2, num_val=2)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    with pytest.raises(ValueError, match="give another folder"):
        generate(tmp_path / "a", seed=3, num_train=3, num_val=2)


def test_bad_arguments_and_foreign_folders(generator, tmp_path):
    generate = generator("mini_coco").DATASET.generate
    with pytest.raises(ValueError, match=r"mini_coco: .*2 images .* 240 and 1"):
        generate(tmp_path / "new", num_val=1)
    with pytest.raises(ValueError, match="got 0 and 40"):
        generator("mini_imagenet").DATASET.generate(tmp_path / "new", num_train=0)
    with pytest.raises(ValueError, match=r"seed: .*-1"):
        generate(tmp_path / "new", seed=-1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").write_text("content")
    with pytest.raises(ValueError, match="no mini_coco"):
        generate(tmp_path / "other", num_train=2, num_val=2)
    assert (tmp_path / "other" / "file.txt").read_text() == "content"


def test_an_interrupted_run_leaves_nothing(generator, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    module = generator("mini_coco")
    monkeypatch.setattr(module, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.DATASET.generate(tmp_path / "set", num_train=2, num_val=2)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path):
    script = ROOT / "dev" / "generators" / "mini_shapes.py"
    command = [sys.executable, script, tmp_path / "set", "--num-train=1", "--num-val=1"]
    for word, extra in (("wrote", []), ("kept", []), ("another folder", ["--seed=1"])):
        result = subprocess.run([*command, *extra], capture_output=True, text=True)
        assert word in (result.stderr if extra else result.stdout)
        assert result.returncode == bool(extra)
        assert "Traceback" not in result.stderr


def test_label_maps_of_mini_ade20k(generator, tmp_path):
    """They are palette PNGs, and the image changes more across their outlines than elsewhere."""
    generator("mini_ade20k").DATASET.generate(tmp_path / "set", num_train=10, num_val=2)
    seen, inside, across = [], [], []
    for index in range(1, 11):
        stem = f"training/ADE_train_{index:08d}"
        with (
            Image.open(tmp_path / "set" / "images" / f"{stem}.jpg") as image,
            Image.open(tmp_path / "set" / "annotations" / f"{stem}.png") as label_map,
        ):
            assert (image.format, label_map.format, label_map.mode) == ("JPEG", "PNG", "P")
            assert image.size == label_map.size
            pixels, labels = np.asarray(image, np.float32), np.asarray(label_map)
        seen.append(set(np.unique(labels).tolist()))
        steps = np.abs(np.diff(pixels, axis=1)).mean(axis=2)
        edges = labels[:, 1:] != labels[:, :-1]
        shapes = (labels[:, 1:] > 0) & (labels[:, :-1] > 0)
        across.append(steps[edges & shapes])
        inside.append(steps[~edges & shapes])
    assert np.concatenate(across).mean() > 3 * np.concatenate(inside).mean()
    # Ignored regions, the ground, and five shapes; the second image is all ground.
    assert set().union(*seen) == set(range(7))
    assert seen[1] == {1}
    names = sorted(p.name for p in (tmp_path / "set" / "images" / "validation").iterdir())
    assert names == ["ADE_val_00000001.jpg", "ADE_val_00000002.jpg"]


@pytest.mark.parametrize("name", ["mini_imagenet", "mini_shapes"])
def test_class_folders(generator, name, tmp_path):
    module = generator(name)
    module.DATASET.generate(tmp_path / "set", num_train=2, num_val=1)
    for split, count in (("train", 2), ("val", 1)):
        folders = sorted((tmp_path / "set" / split).iterdir())
        assert [folder.name for folder in folders] == sorted(module.CLASSES)
        for folder in folders:
            images = [cv2.imread(str(path)) for path in folder.iterdir()]
            assert len(images) == count
            for image in images:
                low, high = (32, 32) if name == "mini_shapes" else (80, 128)
                assert low <= min(image.shape[:2]) <= max(image.shape[:2]) <= high
                # A shape stands out from its background.
                assert image.mean(2).std() > 10


def test_warm_and_cold_classes_differ_in_colour(generator):
    """In the middle of a disk: more red than blue, or the other way round."""
    draw_image = generator("mini_imagenet").draw_image
    for warmth, sign in (("warm", 1), ("cold", -1)):
        for seed in range(8):
            image = draw_image(f"{warmth}_disk", np.random.default_rng(seed))
            height, width = image.shape[:2]
            middle = image[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4]
            blue, _, red = middle.reshape(-1, 3).mean(0)
            assert sign * (red - blue) > 20


@pytest.mark.parametrize("name", ["cross", "ring", "square", "triangle"])
def test_shapes_lie_inside_the_image(generator, name):
    for radius in (9.0, 13.0):
        for corner in (-1, 1):
            centre = 16 + corner * np.full(2, 15 - radius)
            coverage = generator("mini_shapes").outline(name, centre, radius, np.pi / 4)
            assert not coverage[[0, -1]].any()
            assert not coverage[:, [0, -1]].any()
            assert coverage.max() == 1
