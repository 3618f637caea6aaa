"""trials.py: a few iterations of every kind of trial through mim, and its options."""

import csv
import json
import pickle
import sys

import pytest
from helpers import NO_WORKERS, ROOT, run_python

TOOLS = ROOT / "tools"
CONFIG = ROOT / "configs/quickstart/dino-4scale_flash-internimage-nano_1xb2-9e_mini-coco.py"


def few_iterations(name, folder, *baselines):
    """Runs a trial twice; gives its work folder."""
    command = (ROOT / "dev" / "trials.py", name, "--quick", "--work-dir", "work")
    first = run_python(*command, "--record", "record", cwd=folder)
    assert "-m mim train dcnv4_mm" in first
    assert "-m mim test dcnv4_mm" in first
    assert f"\n{name}: " in first
    record = folder / "record" / name
    assert (record / "summary.txt").read_text().strip() in first
    with (record / "curves.csv").open() as file:
        points = list(csv.DictReader(file))
    assert {p["run"] for p in points} == {name, *baselines}
    assert len({p["name"] for p in points}) >= 2
    for image in ("curves.png", "predictions.jpg"):
        assert (record / image).stat().st_size > 5000
        assert (folder / "work" / name / image).is_file()
    again = run_python(*command, cwd=folder)
    assert "trained already" in again
    assert "evaluated already" in again
    return folder / "work" / name


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    return few_iterations("dino", tmp_path_factory.mktemp("dino"))


@pytest.mark.mmdet
def test_json_results_and_augmentation(dino):
    checkpoint = dino / "run" / "epoch_1.pth"
    options = list(NO_WORKERS)
    scales = "tta_pipeline.1.transforms.0"
    options += [f"{scales}.{i}.scale=({side},{side})" for i, side in enumerate((160, 192, 224))]
    options += ["test_evaluator.outfile_prefix=results/mine"]
    command = ("--work-dir", "tta", "--tta", "--out", "found.pkl", "--cfg-options", *options)
    output = run_python(TOOLS / "test.py", CONFIG, checkpoint, *command, cwd=dino)
    assert "| category | mAP" in output
    assert "coco/bbox_mAP_s" in output
    results = json.loads((dino / "results" / "mine.bbox.json").read_text())
    assert {"image_id", "bbox", "score", "category_id"} <= set(results[0])
    found = pickle.loads((dino / "found.pkl").read_bytes())
    assert len(found) == 8
    assert sum(len(prediction["pred_instances"]["scores"]) for prediction in found) == len(results)
    # The views of one image are merged: DINO alone finds 100 in each.
    assert all(len(prediction["pred_instances"]["scores"]) <= 100 for prediction in found)


@pytest.mark.mmseg
@pytest.mark.parametrize("name", ["upernet", "mask2former"])
def test_segmentation(name, tmp_path):
    pytest.importorskip("mmseg", reason="mmsegmentation is not installed")
    few_iterations(name, tmp_path)


@pytest.mark.mmpretrain
def test_classification(tmp_path):
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    work_dir = few_iterations("classifier", tmp_path)
    # All images, not one in so many.
    assert len(list((work_dir / "run" / "images").rglob("*.png"))) == 10


@pytest.mark.mmdet3d
@pytest.mark.parametrize(("name", "baselines"), [("bev", []), ("motion", ["one frame"])])
def test_bev(name, baselines, tmp_path):
    pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
    work_dir = few_iterations(name, tmp_path, *baselines)
    assert (work_dir / "baseline").is_dir() == bool(baselines)


@pytest.mark.parametrize(
    ("compare", "scores", "target", "reached"),
    [
        ("score", [0.5], 0.5, True),
        ("score", [0.4], 0.5, False),
        ("gain", [0.5, 0.4], 0.03, True),
        ("gain", [0.5, 0.48], 0.03, False),
        ("ratio", [0.3, 0.5], 0.7, True),
        ("ratio", [0.4, 0.5], 0.7, False),
    ],
)
def test_targets(compare, scores, target, reached, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "dev"))
    import trials

    trial = trials.Trial("config", "data", {"mAP": "key"}, target, 1, compare=compare)
    summary, result = trials.judge(trial, scores)
    assert result == reached
    assert f"{target:g}" in summary


def test_a_missed_target_is_an_error(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "dev"))
    import trials

    monkeypatch.setattr(trials, "attempt", lambda name, *_, **__: name == "dino")
    command = ["trials.py", "dino", "upernet", "--work-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="missed their targets: upernet"):
        trials.main()
    monkeypatch.setattr(sys, "argv", [*command, "--quick"])
    trials.main()
