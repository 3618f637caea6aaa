"""overfit.py: a few iterations through mim; training, evaluation and augmentation of DINO."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")

pytestmark = pytest.mark.mmdet

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
CONFIG = ROOT / "configs/quickstart/dino-4scale_flash-internimage-nano_1xb2-9e_mini-coco.py"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def run(*command, cwd):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The trial's work folder after one epoch."""
    work_dir = tmp_path_factory.mktemp("overfit") / "work"
    record = work_dir.parent / "record"
    arguments = ("--quick", "--work-dir", work_dir, "--record", record)
    output = run(TOOLS / "overfit.py", *arguments, cwd=work_dir.parent)
    assert "-m mim train dcnv4_mm" in output
    assert "bbox mAP" in output
    assert (record / "curves.png").stat().st_size > 5000
    assert "bbox mAP" in (record / "curves.csv").read_text()
    return work_dir


def test_a_second_run_does_nothing(trained):
    output = run(TOOLS / "overfit.py", "--quick", "--work-dir", trained, cwd=trained)
    assert "trained already" in output


def test_json_results_and_augmentation(trained):
    checkpoint = trained / "dino" / "epoch_1.pth"
    options = [f"{loader}.num_workers=0" for loader in LOADERS]
    options += [f"{loader}.persistent_workers=False" for loader in LOADERS]
    scales = "tta_pipeline.1.transforms.0"
    options += [f"{scales}.{i}.scale=({side},{side})" for i, side in enumerate((160, 192, 224))]
    options += ["test_evaluator.outfile_prefix=results/mine"]
    command = ("--work-dir", "tta", "--tta", "--out", "found.pkl", "--cfg-options", *options)
    output = run(TOOLS / "test.py", CONFIG, checkpoint, *command, cwd=trained)
    assert "| category | mAP" in output
    assert "coco/bbox_mAP_s" in output
    results = json.loads((trained / "results" / "mine.bbox.json").read_text())
    assert {"image_id", "bbox", "score", "category_id"} <= set(results[0])
    found = pickle.loads((trained / "found.pkl").read_bytes())
    assert len(found) == 8
    assert sum(len(prediction["pred_instances"]["scores"]) for prediction in found) == len(results)
    # The views of one picture are merged: DINO alone finds 100 in each.
    assert all(len(prediction["pred_instances"]["scores"]) <= 100 for prediction in found)
