"""One real keyframe of nuScenes, mmdet3d's demonstration data (its demo/data/nuscenes).

Its licence keeps it out of the repository: it is to be put or linked into data/nuscenes_demo.
"""

import re

import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from helpers import ROOT, run_python
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import save_checkpoint

FOLDER = ROOT / "data" / "nuscenes_demo"
CONFIG = ROOT / "configs" / "bevformerv2" / "bevformerv2_r50_fpn_16xb1-24e-t1_nus-3d.py"
SMALL = CONFIG.with_name("bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d.py")


@pytest.fixture(scope="module")
def options():
    """What differs from a complete dataset: stock infos of one sample, and no folders."""
    register_all_modules(init_default_scope=True)
    found = sorted(FOLDER.glob("*.pkl"))
    if not found:
        pytest.skip("needs mmdet3d's demonstration keyframe in data/nuscenes_demo")
    return {
        "test_dataloader.dataset.data_root": str(FOLDER),
        "test_dataloader.dataset.ann_file": found[0].name,
        "test_dataloader.dataset.fallback_scene_split": True,
        "test_dataloader.dataset.metainfo.version": "v1.0-mini",
        **{
            f"test_dataloader.dataset.data_prefix.{camera}": "."
            for camera in Config.fromfile(CONFIG).dataset.data_prefix
        },
    }


def load(path, options):
    config = Config.fromfile(path)
    config.merge_from_dict(options)
    return config, DATASETS.build(config.test_dataloader.dataset)


def test_centres_lie_where_the_infos_have_them(options):
    """Of every object that a camera sees, through crop and scale."""
    _, data = load(CONFIG, options)
    info, sample = data.get_data_info(0), data[0]["data_samples"]
    centers = np.array([instance["bbox_3d"][:3] for instance in info["instances"]])
    compared = {}
    for camera, (name, image) in enumerate(info["images"].items()):
        to_camera = np.array(image["lidar2cam"])
        seen = centers @ to_camera[:3, :3].T + to_camera[:3, 3]
        for entry in info["cam_instances"][name]:
            distances = np.linalg.norm(seen - entry["bbox_3d"][:3], axis=1)
            assert distances.min() < 1e-2
            pixel = sample.lidar2img[0, camera] @ [*centers[distances.argmin()], 1]
            # The config's images: rows from 260 on, as large as they were.
            expected = np.array(entry["center_2d"]) - [0, 260]
            assert pixel[:2] / pixel[2] == pytest.approx(expected, abs=0.5)
            compared[name] = compared.get(name, 0) + 1
    assert len(compared) == 6


def test_from_infos_to_boxes(options):
    """The test pipeline and a small model that has learned nothing."""
    config, data = load(SMALL, options)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    sample = data[0]
    # A single keyframe: of three frames, the first and the last are missing.
    assert sample["data_samples"].frame_valid == (False, True, False)
    batch = dict(inputs=dict(img=[sample["inputs"]["img"]]), data_samples=[sample["data_samples"]])
    with torch.no_grad():
        (result,) = model.eval().test_step(batch)
    found = result.pred_instances_3d
    assert len(found.bboxes_3d) == len(found.scores_3d) == len(found.labels_3d) > 0
    assert found.bboxes_3d.tensor.isfinite().all()


@pytest.mark.parametrize("drawn", ["objects", "predictions"])
def test_the_demo_draws_it(options, tmp_path, drawn):
    img, checkpoint = tmp_path / "boxes.png", tmp_path / "untrained.pth"
    arguments = ["--ground-truth"]
    if drawn == "predictions":
        model = MODELS.build(Config.fromfile(SMALL).model)
        content = dict(state_dict=model.state_dict(), meta=dict(mmengine_version="0.10.7"))
        save_checkpoint(content, str(checkpoint))
        arguments = [checkpoint, "--score=0"]
    tool = ROOT / "tools" / "visualization" / "bev_demo.py"
    pairs = [f"{key}={value}" for key, value in options.items()]
    command = (tool, SMALL, *arguments, "--out", img, "--cfg-options", *pairs)
    count = int(re.search(r": (\d+) boxes", run_python(*command, cwd=tmp_path))[1])
    assert count == (65 if drawn == "objects" else 300)
    # Three images of 96 x 240 beside each other, twice, and a square map.
    assert cv2.imread(str(img)).shape[1] > 4 * 640
