"""Small runs of all benchmarks on the CPU: arguments, tables and plots."""

import subprocess
import sys
from types import SimpleNamespace

import measure
import pytest
import torch
from helpers import ROOT

# Runs several command lines in one process.
DRIVER = """
import shlex, sys
sys.path.insert(0, sys.argv[1])
import run
for line in sys.stdin.read().splitlines():
    sys.argv = ["run.py", *shlex.split(line)]
    run.main()
"""
# Stands for the released package, which only builds where there is a GPU.
ORIGINAL = """
from dcnv4_mm.ops.functional import dcnv4

class DCNv4Function:
    @staticmethod
    def apply(value, offset_mask, kh, kw, sh, sw, ph, pw, dh, dw, groups, width, scale, step, rc):
        assert (kh, kw, sh, sw, ph, pw, dh, dw, scale, rc) == (3, 3, 1, 1, 1, 1, 1, 1, 1.0, 0)
        assert groups * width == value.shape[-1]
        assert value.shape[0] % step == 0
        return dcnv4(value, offset_mask, groups=groups)
"""
# Compares all implementations that need no GPU, as on a GPU.
AS_ON_A_GPU = """
import operators.dcnv4
operators.dcnv4.OPERATORS = {
    name: make for name, make in operators.dcnv4.GPU_OPERATORS.items() if "compiled" not in name
}
"""
WRONG = """
import operators.dcnv4
right = operators.dcnv4.dcnv4
operators.dcnv4.dcnv4 = lambda *args, **kwargs: 1.01 * right(*args, **kwargs)
"""


def drive(folder, lines, *, before=""):
    """Runs command lines on the CPU; returns rows by benchmark, output and errors."""
    options = "--device cpu --threads 1 --seconds 0 --turns 1 --out out"
    code = DRIVER.replace("import run\n", f"import run\n{before}")
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "benchmarks")],
        cwd=folder,
        input="\n".join(f"{line} {options}" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    rows = {}
    for path in (folder / "out").glob("*.csv"):
        some = measure.read(path)
        rows[some[0]["benchmark"]] = some
        if any(row["milliseconds"] for row in some):
            assert path.with_suffix(".png").stat().st_size > 1000
    return SimpleNamespace(rows=rows, **vars(result))


OPERATORS = (
    "dcnv4 --cases 2x5x7x4x8 --dtypes float32 bfloat16",
    "dcnv4_modes --cases 2x5x7x4x8 --dtypes float16",
    "flash_deform_attn --tiny",
    "bev_cross_attn --tiny",
    "layers --cases 1x5x7x4x8 2x3x4x2x8",
    "ablation --cases 1x5x7x4x8 --image 32",
    "host_time",
    "dcnv4_memory",
)


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operators")
    (folder / "DCNv4").mkdir()
    (folder / "DCNv4" / "functions.py").write_text(ORIGINAL)
    path = "import sys\nsys.path.append('.')\n"
    result = drive(folder, OPERATORS, before=path + AS_ON_A_GPU)
    assert result.returncode == 0, result.stderr
    result.folder = folder
    return result


def by_name(rows, **keys):
    some = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    return {row["implementation"]: row for row in some}


def test_dcnv4(operators):
    rows = by_name(operators.rows["dcnv4"], measured="forward", dtype="float32")
    for name in ("dcnv4", "original DCNv4", "grid_sample", "torchvision deform_conv2d"):
        assert float(rows[name]["milliseconds"]) > 0
        assert float(rows[name]["relative_error"]) < 1e-5
    assert rows["convolution 3x3"]["relative_error"] == ""
    assert "float16" in rows["dcnv4, fast"]["reason"]
    both = by_name(operators.rows["dcnv4"], measured="forward+backward", dtype="bfloat16")
    assert float(both["grid_sample in float32"]["ratio"]) > 0


def test_modes(operators):
    rows = operators.rows["dcnv4_modes"]
    assert [(row["measured"], row["implementation"]) for row in rows] == [
        ("forward", "dcnv4, fast"),
        ("forward", "dcnv4"),
        ("backward", "dcnv4, deterministic"),
        ("backward", "dcnv4"),
    ]
    assert all(float(row["gigabytes_per_second"]) > 0 for row in rows)


def test_attention(operators):
    rows = by_name(operators.rows["flash_deform_attn"], case="encoder Q215 L2 P4")
    for name in ("ms_deform_attn", "flash_deform_attn", "mmcv without CUDA"):
        assert float(rows.pop(name)["relative_error"]) < 1e-4
    # Packages that may be missing.
    assert set(rows) == {"torch-ms-deform-attn", "deformops"}
    assert all(row["milliseconds"] or row["reason"] for row in rows.values())
    assert all(float(row["relative_error"]) < 1e-4 for row in operators.rows["bev_cross_attn"])
    assert len(operators.rows["bev_cross_attn"]) == 4


def test_host_time(operators):
    rows = by_name(operators.rows["host_time"], measured="forward")
    assert set(rows) == {"dcnv4", "raw operator", "torch.empty_like"}
    assert 0 < float(rows["torch.empty_like"]["ratio"]) < 1


def test_memory(operators):
    assert all(0.9 < float(row["ratio"]) < 2 for row in operators.rows["dcnv4_memory"])


def test_layers(operators):
    for measured in ("forward", "forward+backward"):
        rows = by_name(operators.rows["layers"], measured=measured, case="2x3x4 G2 D8")
        assert float(rows["DCNv4"]["milliseconds"]) > 0
        assert float(rows["DCNv2 (torchvision)"]["milliseconds"]) > 0
        # 16 channels are half a head.
        assert rows["FlashAttention"]["reason"] == "needs a multiple of 32 channels"


def test_ablation(operators):
    rows = by_name(operators.rows["ablation"], case="FlashInternImage-T 1x32x32")
    parameters = {name: float(row["parameters_millions"]) for name, row in rows.items()}
    assert len(parameters) == 5
    assert parameters["softmax"] == parameters["one linear layer"]
    assert parameters["one linear layer"] < parameters["depthwise convolution"]
    assert parameters["depthwise convolution"] < parameters["separate branch"]


def test_a_wrong_operator_is_not_measured(tmp_path):
    result = drive(tmp_path, ["layers --cases 1x3x3x1x8"], before=WRONG)
    assert result.returncode == 1
    assert "dcnv4's output on cpu in float32 has a relative error of 0.01" in result.stderr
    assert not (tmp_path / "out").exists()


def call(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_needs_a_device():
    result = call("dcnv4", "--device", "cuda")
    assert result.returncode == 2
    assert "no CUDA device is visible" in result.stderr


def test_bad_arguments():
    result = call("dcnv4", "--cases", "3x4")
    assert "expected batch, height, width, groups and channels" in result.stderr


@pytest.mark.mmdet
@pytest.mark.mmseg
def test_networks(tmp_path):
    lines = (
        "scaling --image 64",
        "detectors --image 32 --methods UperNet",
        "training --image 32 --batch 1 --methods",
    )
    result = drive(tmp_path, lines)
    assert result.returncode == 0, result.stderr
    rows = by_name(result.rows["scaling"])
    for name in ("FlashInternImage", "InternImage", "Swin", "ConvNeXt"):
        assert float(rows[name]["images_per_second"]) > 0
    rows = by_name(result.rows["detectors"], case="UperNet T 1x32x32")
    for name in ("FlashInternImage", "Swin"):
        assert float(rows[name]["milliseconds"]) > 0
        steps = by_name(result.rows["training"], measured="training step")
        assert float(steps[name]["milliseconds"]) > 0
        memory = by_name(result.rows["training"], measured="memory of a step")[name]
        # At least a gradient of 4 bytes for every parameter.
        assert float(memory["mebibytes"]) > 3.8 * float(memory["parameters_millions"])


def test_processes_train_together(tmp_path):
    options = "--processes 2 --implementations FlashInternImage --image 32 --batch 1"
    result = drive(tmp_path, [f"processes {options}"] * 2)
    assert result.returncode == 0, result.stderr
    rows = result.rows["processes"]
    # The second time nothing is measured again.
    assert [(row["measured"], row["case"]) for row in rows] == [
        ("training step", "T 1x32x32 on 1"),
        ("training step", "T 1x32x32 on 2"),
        ("all-reduce", "T 1x32x32 on 1"),
        ("all-reduce", "T 1x32x32 on 2"),
    ]
    # The images of both processes are counted.
    for row, count in zip(rows, (1, 2, 1, 2), strict=True):
        speed = count * 1e3 / float(row["milliseconds"])
        assert float(row["images_per_second"]) == pytest.approx(speed, rel=1e-2)


def test_operators_learn(tmp_path):
    line = "convergence --seeds 3 --epochs 2 --per-class 4"
    result = drive(tmp_path, [line, line])
    assert result.returncode == 0, result.stderr
    rows = result.rows["convergence"]
    assert len(rows) == 10
    parameters = {row["implementation"]: float(row["parameters_millions"]) for row in rows}
    assert set(parameters) == {
        *("DCNv4", "DCNv4 with softmax", "DCNv3", "Attention", "Convolution"),
    }
    for name, millions in parameters.items():
        assert millions == pytest.approx(parameters["DCNv4"], rel=0.04), name
        mine = [row for row in rows if row["implementation"] == name]
        assert [row["case"] for row in mine] == ["seed 3 epoch 1", "seed 3 epoch 2"]
        # Ten classes: a network that knows nothing has 2.3.
        assert 1 < float(mine[1]["loss"]) < 4
