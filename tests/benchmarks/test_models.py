"""Small runs of the benchmark of layers and networks: tables, plots, and what ends them."""

import csv
import subprocess
import sys

import pytest
from helpers import ROOT

BENCHMARKS = ROOT / "benchmarks"
# Runs it with an operator that is wrong by one percent.
WRONG = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gate, models
right = gate.dcnv4
gate.dcnv4 = lambda *args, **kwargs: 1.01 * right(*args, **kwargs)
models.main()
"""


def run(folder, *arguments, code=None):
    program = [str(BENCHMARKS / "models.py")] if code is None else ["-c", code, str(BENCHMARKS)]
    command = [sys.executable, *program, *arguments, "--out", "out", "--seconds", "0"]
    command += ["--device", "cpu", "--threads", "1"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def measure(folder, stage, *arguments):
    """Runs a stage; gives its rows by (measured, contender), and what it said."""
    result = run(folder, stage, *arguments)
    assert result.returncode == 0, result.stderr
    (table,) = (folder / "out").glob(f"*_{stage}.csv")
    assert table.with_suffix(".png").stat().st_size > 1000
    with open(table, newline="") as file:
        return {(row["measured"], row["contender"]): row for row in csv.DictReader(file)}, result


def test_layers(tmp_path):
    rows, _ = measure(tmp_path, "layers", "--cases", "1x5x7x4x8", "2x3x4x2x8")
    for measured in ("forward", "forward+backward"):
        assert float(rows[measured, "DCNv4"]["milliseconds"]) > 0
        assert float(rows[measured, "DCNv2 (torchvision)"]["milliseconds"]) > 0
        # With mmcv-lite it would be torchvision's again.
        assert rows[measured, "DCNv2 (mmcv)"]["reason"] == "No module named 'mmcv._ext'"
        # 16 channels are half a head.
        attention = rows[measured, "FlashAttention"]
        assert attention["case"] == "2x3x4 G2 D8"
        assert attention["reason"] == "needs a multiple of 32 channels"
        assert (attention["milliseconds"], attention["threads"]) == ("", "1")
    again, result = measure(tmp_path, "layers", "--cases", "1x5x7x4x8", "2x3x4x2x8")
    assert again == rows
    assert "DCNv" not in result.stdout, "what is in the table must not be measured again"


def test_ablation(tmp_path):
    rows, _ = measure(tmp_path, "ablation", "--cases", "1x5x7x4x8", "--image", "32")
    backbones = {name: row for (_, name), row in rows.items() if row["case"].endswith("T 1x32x32")}
    assert len(backbones) == 5
    parameters = {name: float(row["parameters_millions"]) for name, row in backbones.items()}
    assert parameters["softmax"] == parameters["one linear layer"]
    assert parameters["one linear layer"] < parameters["depthwise convolution"]
    assert parameters["depthwise convolution"] < parameters["separate branch"]


@pytest.mark.mmdet
def test_scaling(tmp_path):
    rows, _ = measure(tmp_path, "scaling", "--image", "64")
    assert float(rows["forward", "FlashInternImage"]["images_per_second"]) > 0
    assert float(rows["forward", "Swin"]["images_per_second"]) > 0
    assert float(rows["forward", "ConvNeXt"]["images_per_second"]) > 0


@pytest.mark.mmseg
def test_detectors(tmp_path):
    rows, _ = measure(tmp_path, "detectors", "--image", "32", "--methods", "UperNet")
    for contender in ("FlashInternImage", "Swin"):
        row = rows["forward", contender]
        assert row["case"] == "UperNet T 1x32x32"
        assert float(row["milliseconds"]) > 0


@pytest.mark.mmdet
def test_training(tmp_path):
    rows, _ = measure(tmp_path, "training", "--image", "32", "--batch", "1", "--methods")
    for contender in ("FlashInternImage", "Swin"):
        step, memory = (rows[name, contender] for name in ("training step", "memory of a step"))
        assert float(step["milliseconds"]) > 0
        # At least a gradient of 4 bytes for every parameter.
        assert float(memory["mebibytes"]) > 3.8 * float(memory["parameters_millions"])


def test_nothing_is_measured_with_a_wrong_operator(tmp_path):
    result = run(tmp_path, "layers", "--cases", "1x3x3x1x8", code=WRONG)
    assert result.returncode == 1
    assert "error: nothing is measured: dcnv4's output on cpu in float32 is wrong by" in (
        result.stderr
    )
    assert not (tmp_path / "out").exists()
