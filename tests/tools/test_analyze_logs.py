"""analyze_logs.py: what runs have logged, at the right iterations, in one figure."""

import json

from dcnv4_mm.cli.logs import read_logs


def write(folder, *records):
    folder = folder / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(r) + "\n" for r in records))


def training(step, epoch, loss):
    return {"lr": 0.1, "loss": loss, "epoch": epoch, "iter": step, "step": step, "time": 1.0}


def test_epochs_become_iterations_and_a_resumed_run_counts(tmp_path):
    write(
        tmp_path / "20260101_000000",
        training(1, 1, 9.0),
        training(2, 1, 8.0),
        {"coco/bbox_mAP": 0.1, "step": 1},
        training(3, 2, 7.0),
        training(4, 2, 6.0),
    )
    write(
        tmp_path / "20260102_000000",
        training(3, 2, 6.5),
        training(4, 2, 5.0),
        {"coco/bbox_mAP": 0.3, "step": 2},
    )
    found = read_logs(tmp_path)
    assert found["loss"] == {1: 9.0, 2: 8.0, 3: 6.5, 4: 5.0}
    assert found["coco/bbox_mAP"] == {2: 0.1, 4: 0.3}
    assert set(found) == {"loss", "lr", "coco/bbox_mAP"}


def test_training_by_iterations(tmp_path):
    iteration = {"loss": 2.0, "iter": 50, "step": 50, "time": 1.0}
    write(tmp_path / "run", iteration, {"mIoU": 40.0, "step": 50})
    assert read_logs(tmp_path) == {"loss": {50: 2.0}, "mIoU": {50: 40.0}}


def test_figure_has_a_panel_for_every_key(run_tool, tmp_path):
    from matplotlib import image

    for name in ("one", "two"):
        write(tmp_path / name / "run", training(1, 1, 3.0), {"coco/bbox_mAP": 0.2, "step": 1})
    sizes = []
    for keys in (["loss"], ["loss", "lr", "coco/bbox_mAP"]):
        arguments = ("one", "two", "--keys", *keys, "--out", "curves.png")
        assert run_tool("analyze_logs.py", *arguments, cwd=tmp_path).message is None
        sizes.append(image.imread(tmp_path / "curves.png").shape[1])
    assert sizes == [500, 1500]
    assert run_tool("analyze_logs.py", "one", cwd=tmp_path).stdout == "curves.png\n"


def test_what_is_not_there(run_tool, tmp_path):
    message = run_tool("analyze_logs.py", "nowhere", cwd=tmp_path).message
    assert "nowhere holds no" in message
    write(tmp_path / "run", training(1, 1, 3.0))
    message = run_tool("analyze_logs.py", ".", "--keys", "los", cwd=tmp_path).message
    assert "no los in the logs; they have loss, lr" in message
    message = run_tool("analyze_logs.py", ".", "--out", "a/b.png", cwd=tmp_path).message
    assert "cannot write a/b.png" in message
