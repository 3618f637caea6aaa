"""browse_dataset.py: the annotations are drawn where the objects are."""

import cv2
import numpy as np
import pytest

DETECTION = "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco"
SEGMENTATION = "upernet_flash-internimage-nano_1xb8-500it_mini-ade20k"
CLASSIFICATION = "flash-internimage-nano_1xb32-40e_mini-imagenet"


@pytest.mark.mmdet
def test_detection(run_tool, tmp_path):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    data = ("data/mini_coco", "--num-train", 2, "--num-val", 3)
    run_tool("mini_coco.py", *data, cwd=tmp_path)
    arguments = (DETECTION, "--phase", "val", "--count", 2)
    result = run_tool("browse_dataset.py", *arguments, cwd=tmp_path)
    assert result.stdout.splitlines()[-2:] == ["browsed/00000.jpg", "browsed/00001.jpg"]
    plain = cv2.imread(str(tmp_path / "data/mini_coco/val/000001.jpg"))
    drawn = cv2.imread(str(tmp_path / "browsed/00000.jpg"))
    changed = np.abs(drawn.astype(int) - plain).max(-1) > 40
    assert 0.005 < changed.mean() < 0.9


@pytest.mark.mmseg
def test_segmentation(run_tool, tmp_path):
    pytest.importorskip("mmseg", reason="mmseg is not installed")
    data = ("data/mini_ade20k", "--num-train", 2, "--num-val", 2)
    run_tool("mini_ade20k.py", *data, cwd=tmp_path)
    result = run_tool("browse_dataset.py", SEGMENTATION, "--out-dir", "out", cwd=tmp_path)
    assert result.message is None
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.mmpretrain
def test_classification(run_tool, tmp_path):
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    run_tool("mini_imagenet.py", "data/mini_imagenet", cwd=tmp_path)
    result = run_tool("browse_dataset.py", CLASSIFICATION, "--count", 2, cwd=tmp_path)
    assert result.message is None
    assert len(list((tmp_path / "browsed").iterdir())) == 2


@pytest.mark.mmdet
def test_what_does_not_work(run_tool, tmp_path):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    message = run_tool("browse_dataset.py", DETECTION, cwd=tmp_path).message
    assert "data/mini_coco does not exist" in message
    (tmp_path / "other.py").write_text("default_scope = 'mmengine'")
    message = run_tool("browse_dataset.py", "other.py", cwd=tmp_path).message
    assert "mmengine" in message
