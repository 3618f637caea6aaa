"""Small runs of the benchmarks that train: operators side by side, and processes together."""

import csv
import subprocess
import sys

import pytest
from helpers import ROOT


def run(folder, script, *arguments):
    """Runs a benchmark; gives the rows of its table, and what it said."""
    program = str(ROOT / "benchmarks" / f"{script}.py")
    command = [sys.executable, program, *arguments, "--out", "out", "--device", "cpu"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (table,) = (folder / "out").glob(f"*_{script}.csv")
    with open(table, newline="") as file:
        return list(csv.DictReader(file)), result.stdout


def test_operators_learn_side_by_side(tmp_path):
    options = ("--seeds", "3", "--epochs", "2", "--per-class", "4", "--threads", "1")
    rows, _ = run(tmp_path, "convergence", *options)
    (plot,) = (tmp_path / "out").glob("*.png")
    assert plot.stat().st_size > 1000
    parameters = {row["contender"]: float(row["parameters_millions"]) for row in rows}
    assert set(parameters) == {
        *("DCNv4", "DCNv4 with softmax", "DCNv3", "Attention", "Convolution"),
    }
    for contender, millions in parameters.items():
        assert millions == pytest.approx(parameters["DCNv4"], rel=0.04), contender
        mine = [row for row in rows if row["contender"] == contender]
        assert [row["case"] for row in mine] == ["seed 3 epoch 1", "seed 3 epoch 2"]
        # Ten classes: a network that knows nothing has 2.3.
        assert 1 < float(mine[1]["loss"]) < 4
    again, output = run(tmp_path, "convergence", *options)
    assert again == rows
    assert "seed 3" not in output, "what is in the table must not be trained again"


def test_processes_train_together(tmp_path):
    options = ("--processes", "2", "--families", "FlashInternImage", "--image", "32")
    rows, _ = run(tmp_path, "processes", *options, "--batch", "1", "--seconds", "0")
    assert [(row["measured"], row["case"]) for row in rows] == [
        ("training step", "T 1x32x32 on 1"),
        ("training step", "T 1x32x32 on 2"),
        ("all-reduce", "T 1x32x32 on 1"),
        ("all-reduce", "T 1x32x32 on 2"),
    ]
    # Both processes' pictures are counted.
    for row, count in zip(rows, (1, 2, 1, 2), strict=True):
        speed = count * 1e3 / float(row["milliseconds"])
        assert float(row["images_per_second"]) == pytest.approx(speed, rel=1e-2)
    again, output = run(tmp_path, "processes", *options, "--batch", "1", "--seconds", "0")
    assert again == rows
    assert "training step" not in output, "what is in the table must not be measured again"
