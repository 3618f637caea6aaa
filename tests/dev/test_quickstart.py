"""quickstart.py: a run of a few iterations through mim, and a second that does nothing."""

import csv
import json
import sys

import pytest
from helpers import ROOT, run_python

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmengine.config import Config

pytestmark = pytest.mark.mmdet

DEV = ROOT / "dev"


@pytest.fixture
def running(monkeypatch):
    monkeypatch.syspath_prepend(str(DEV))
    import mim_driver

    return mim_driver


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(DEV))
    import figures

    return figures


def run(work_dir, *arguments):
    command = (DEV / "quickstart.py", "--quick", "--work-dir", work_dir, *arguments)
    return run_python(*command, cwd=work_dir.parent, OMP_NUM_THREADS="2")


def test_all_of_it_through_mim(tmp_path):
    work_dir, record = tmp_path / "quickstart", tmp_path / "record"
    output = run(work_dir, "--record", record)
    assert output.count(" -m mim train dcnv4_mm ") == 1
    assert output.count(" -m mim test dcnv4_mm ") == 2
    assert "DCNv4 ran in all 2 stages" in output
    for row in ("trained", "untrained"):
        assert f"\n{row} " in output
    for name in ("curves.png", "predictions.jpg", "sampling.jpg"):
        assert str(work_dir / name) in output
        assert (work_dir / name).stat().st_size > 5000
        assert (record / name).read_bytes() == (work_dir / name).read_bytes()
    with (record / "curves.csv").open() as file:
        points = list(csv.DictReader(file))
    assert {p["name"] for p in points} == {"loss", "mAP"}

    written = {p: p.stat().st_mtime_ns for p in work_dir.rglob("*.pth")}
    again = run(work_dir)
    assert "-m mim" not in again
    assert "kept" in (work_dir / "data.log").read_text()
    assert written == {p: p.stat().st_mtime_ns for p in work_dir.rglob("*.pth")}


def test_sampling_is_shown_for_long_objects(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(DEV))
    import quickstart

    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 50} for i in (1, 2)]
    boxes = {1: [[10, 10, 20, 4], [30, 0, 60, 10]], 2: [[0, 5, 10, 40]]}
    entries = [{"image_id": image, "bbox": box} for image in boxes for box in boxes[image]]
    file = tmp_path / "val.json"
    file.write_text(json.dumps({"images": images, "annotations": entries}))
    found = quickstart.longest_objects(file, 2)
    assert found == [("1.png", (0.6, 0.1)), ("2.png", (0.05, 0.5))]
    assert len(quickstart.longest_objects(file, 1)) == 1


def test_settings_decide_whether_a_folder_is_kept(running, tmp_path):
    folder, stamp = tmp_path / "run", tmp_path / "stamp.json"
    stamp.write_text("a set")

    def prepare(**settings):
        running.prepare_folder(folder, Config(settings), stamp)
        return [p.name for p in folder.iterdir()]

    prepare(lr=1)
    (folder / "epoch_1.pth").write_text("weights")
    assert len(prepare(lr=1)) == 2
    assert prepare(lr=2) == ["settings.txt"]
    (folder / "epoch_1.pth").write_text("weights")
    stamp.write_text("another set")
    assert prepare(lr=2) == ["settings.txt"]


@pytest.mark.parametrize(
    ("files", "pointer", "expected"),
    [
        (["epoch_2.pth"], "epoch_2.pth", "done"),
        (["epoch_1.pth"], "epoch_1.pth", "goes on"),
        ([], "epoch_1.pth", "starts anew"),
        ([], None, "starts anew"),
    ],
)
def test_what_becomes_of_an_interrupted_training(
    files, pointer, expected, running, tmp_path, monkeypatch
):
    commands = []
    monkeypatch.setattr(running, "run", lambda command, *_: commands.append(command))
    for name in files:
        (tmp_path / name).write_text("weights")
    if pointer:
        (tmp_path / "last_checkpoint").write_text(str(tmp_path / pointer))
    config = tmp_path / "config.py"
    config.write_text("train_cfg = dict(max_epochs=2)")
    assert running.train(config, tmp_path, tmp_path, []) == tmp_path / "epoch_2.pth"
    assert bool(commands) == (expected != "done")
    assert all("--resume" in command for command in commands)
    assert (tmp_path / "last_checkpoint").is_file() == (expected != "starts anew")


def test_a_failing_command_shows_the_end_of_its_log(running, tmp_path):
    command = [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"(?s)error: .*the reason"):
        running.run(command, tmp_path, tmp_path / "log")


def test_progress_keeps_what_tells(running):
    line = (
        "11/20 13:09:06 - mmengine - INFO - Epoch(train)  [1][40/60]  lr: 8.6980e-04  "
        "eta: 0:00:22  time: 1.4719  grad_norm: 5.4482  loss: 2.4965  loss_rpn_cls: 0.3944"
    )
    shown = running.progress(line)
    assert shown.split() == ["Epoch(train)", "[1][40/60]", "eta:", "0:00:22", "loss:", "2.4965"]


def test_curves_of_a_run_that_was_interrupted(figures, tmp_path):
    def log(name, *records):
        path = tmp_path / name / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def step(number, epoch, loss):
        return {"loss": loss, "step": number, "epoch": epoch, "time": 6.0}

    first_epoch = {"coco/bbox_mAP": 0.1, "coco/segm_mAP": 0.2, "step": 1}
    log("1", step(5, 1, 3.0), step(10, 1, 2.0), first_epoch, step(15, 2, 9.0))
    log("2", step(15, 2, 1.5), step(20, 2, 1.0), {**first_epoch, "step": 2})
    curve = figures.read_curves(tmp_path, {"segm mAP": "coco/segm_mAP"})
    assert [(s, v) for s, name, v in curve if name == "loss"] == [
        (5, 3.0),
        (10, 2.0),
        (15, 1.5),
        (20, 1.0),
    ]
    assert [(s, v) for s, name, v in curve if name == "segm mAP"] == [(10, 0.2), (20, 0.2)]
    assert figures.training_minutes(tmp_path) == pytest.approx(2.0)
