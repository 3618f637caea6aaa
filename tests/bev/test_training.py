"""train.py and test.py on the synthetic set: an epoch, going on, evaluating; with a tiny model."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

pytestmark = [pytest.mark.mmdet3d, pytest.mark.slow]

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")

NAME = "bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d.py"
CONFIG = ROOT / "configs" / "bevformerv2" / NAME
OPTIONS = [
    *(f"{phase}_dataloader.num_workers=0" for phase in ("train", "val", "test")),
    *(f"{phase}_dataloader.persistent_workers=False" for phase in ("train", "val", "test")),
    "default_hooks.logger.interval=1",
    "model.pts_bbox_head.bev_shape=(16,16)",
]


def run(root, tool, *arguments, epochs=1):
    roots = [f"{phase}_dataloader.dataset.data_root={root}" for phase in ("train", "val", "test")]
    evaluators = [
        f"{phase}_evaluator.{key}"
        for phase in ("val", "test")
        for key in (f"data_root={root}", f"ann_file={root}/bevformerv2_infos_val.pkl")
    ]
    command = [sys.executable, ROOT / "tools" / tool, CONFIG, *arguments, "--cfg-options"]
    options = [*OPTIONS, *roots, *evaluators, f"train_cfg.max_epochs={epochs}"]
    options.append("train_cfg.val_interval=1")
    result = subprocess.run(
        [*map(str, command), *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    return output


def test_train_resume_and_test(nuscenes_root, tmp_path):
    first = run(nuscenes_root, "train.py", f"--work-dir={tmp_path}")
    losses = [float(x) for x in re.findall(r" loss: (\S+)", first)]
    assert losses
    assert all(0 < loss < 1e4 for loss in losses)
    assert "NDS" in first
    resumed = run(nuscenes_root, "train.py", f"--work-dir={tmp_path}", "--resume", epochs=2)
    assert "Epoch(train) [2]" in resumed
    assert "Epoch(train) [1]" not in resumed
    tested = run(nuscenes_root, "test.py", str(tmp_path / "epoch_2.pth"))
    assert "mAP" in tested
