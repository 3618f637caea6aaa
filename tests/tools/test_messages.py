"""Errors of the tools: one line, exit status not 0, no traceback."""

import os
import sys

import pytest
import torch
from helpers import ROOT, run_python

import dcnv4_mm.integrations

pytest.importorskip("mmdet", reason="mmdet is not installed")

pytestmark = pytest.mark.mmdet

PROGRAMS = {p.name: p for folder in ("tools", "dev") for p in (ROOT / folder).rglob("*.py")}
COCO = ROOT / "configs" / "mask_rcnn" / "mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco.py"
NANO = ROOT / "configs/quickstart/mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco.py"


@pytest.fixture
def refusal(run_tool):
    """Function that runs a tool that must stop with a one-line message, and returns that."""

    def refuse(tool, *arguments, cwd):
        message = run_tool(tool, *arguments, cwd=cwd).message
        assert isinstance(message, str), "the tool did not refuse"
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return refuse


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages")
    arguments = ("data/mini_coco", "--num-train", 2, "--num-val", 2)
    run_python(PROGRAMS["mini_coco.py"], *arguments, cwd=folder)
    return folder


@pytest.mark.parametrize(
    "tool",
    [
        *("train.py", "test.py", "demo.py", "convert.py", "visualize_offsets.py", "quickstart.py"),
        *("trials.py", "export.py"),
        *("analyze_logs.py", "benchmark.py", "browse_dataset.py", "get_flops.py"),
        *("print_config.py", "publish_checkpoint.py"),
        *("mini_coco.py", "check_dataset.py"),
        "mini_imagenet.py",
    ],
)
def test_help(tool, tmp_path):
    output = run_python(PROGRAMS[tool], "-h", cwd=tmp_path)
    # If it finds this, mim passes the option of OpenMMLab 1.
    assert "--gpus" not in output


def test_help_needs_no_host(tmp_path):
    """mim asks for it before every training: nothing heavy may be imported."""
    (tmp_path / "torch.py").write_text("raise ImportError('imported too early')")
    for tool in ("train.py", "test.py"):
        path = os.pathsep.join((str(tmp_path), str(ROOT)))
        run_python(PROGRAMS[tool], "-h", cwd=tmp_path, PYTHONPATH=path)


@pytest.mark.parametrize("spelling", ["--local_rank=1", "--local-rank=1"])
def test_both_spellings_of_the_local_rank(refusal, spelling, tmp_path):
    assert "nope.py does not exist" in refusal("train.py", "nope.py", spelling, cwd=tmp_path)


def test_missing_config_names_the_nearest(refusal, tmp_path):
    message = refusal("train.py", f"somewhere/{COCO.stem}", cwd=tmp_path)
    assert f"did you mean {COCO}" in message


def test_missing_data_names_the_path_and_leaves_no_folder(refusal, tmp_path):
    message = refusal("train.py", COCO, cwd=tmp_path)
    assert str(tmp_path / "data" / "coco") in message
    assert "data_root" in message
    assert list(tmp_path.iterdir()) == []


def test_missing_annotation_file(refusal, tmp_path):
    (tmp_path / "data" / "coco").mkdir(parents=True)
    assert "instances_train2017.json does not exist" in refusal("train.py", COCO, cwd=tmp_path)


def test_work_folder_that_cannot_be_written(refusal, data):
    (data / "file").write_text("")
    message = refusal("train.py", NANO, "--work-dir", "file/out", cwd=data)
    assert "cannot write to file/out" in message
    assert "--work-dir" in message


@pytest.mark.parametrize("content", ["default_scope = 'mmnowhere'", "_base_ = 'mmocr::a/b.py'"])
def test_config_of_a_missing_host(refusal, content, tmp_path):
    (tmp_path / "config.py").write_text(content)
    message = refusal("train.py", "config.py", cwd=tmp_path)
    name = "mmocr" if "mmocr" in content else "mmnowhere"
    assert f" {name} is not installed" in message
    assert "python -m dcnv4_mm.env" in message


def test_a_missing_host_of_a_base_config_is_named_with_the_extra(refusal, tmp_path, monkeypatch):
    """Its distribution, which mmengine looks for, has another name: mmsegmentation."""
    missing = "mmsegmentation"
    monkeypatch.setattr("mmengine.config.config.is_installed", lambda name: name != missing)
    (tmp_path / "config.py").write_text("_base_ = 'mmseg::_base_/default_runtime.py'")
    assert "dcnv4_mm[mmseg]" in refusal("train.py", "config.py", cwd=tmp_path)


def test_a_missing_host_is_named_with_the_extra(refusal, tmp_path, monkeypatch):
    """From every tool that reads a config, and from those that need mmengine alone."""

    def install():
        raise ModuleNotFoundError("no", name="mmengine")

    monkeypatch.setattr(dcnv4_mm.integrations, "install", install)
    arguments = {
        "train.py": (NANO,),
        "test.py": (NANO, "x.pth"),
        "get_flops.py": (NANO,),
        "print_config.py": (NANO,),
    }
    for tool, words in arguments.items():
        message = refusal(tool, *words, cwd=tmp_path)
        assert "mmengine is not installed" in message, tool
        assert "dcnv4_mm[mim]" in message


@pytest.mark.parametrize(
    ("library", "command", "extra"),
    [
        ("transformers", ("hugging_face.py", "x.pth", "folder"), "transformers"),
        ("cv2", ("visualize_offsets.py", "x.jpg", NANO, "x.pth"), "mim"),
    ],
)
def test_what_a_tool_alone_needs_is_named_with_the_extra(
    refusal, tmp_path, monkeypatch, library, command, extra
):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "dcnv4_mm.transformers", raising=False)
    for name in ("x.jpg", "x.pth"):
        (tmp_path / name).write_text("")
    message = refusal(*command, cwd=tmp_path)
    assert f"{library} is not installed" in message
    assert f"dcnv4_mm[{extra}]" in message


def test_config_that_is_broken(refusal, tmp_path):
    (tmp_path / "config.py").write_text("model = dict(\n")
    assert "config.py cannot be read" in refusal("train.py", "config.py", cwd=tmp_path)


@pytest.mark.parametrize("option", ["lr", "param_scheduler.7.end=3"])
def test_options_that_do_not_fit(refusal, option, tmp_path):
    assert "--cfg-options" in refusal("train.py", NANO, "--cfg-options", option, cwd=tmp_path)


def test_missing_checkpoints(refusal, data):
    assert "nope.pth does not exist" in refusal("test.py", NANO, "nope.pth", cwd=data)
    assert "nope.pth does not exist" in refusal("train.py", NANO, "--resume=nope.pth", cwd=data)


def test_checkpoints_that_do_not_fit(data):
    """The error comes from inside of mmengine's runner, and still is one line."""
    torch.save({"state_dict": {"backbone.weight": torch.zeros(1000)}}, data / "other.pth")
    (data / "cut.pth").write_bytes((data / "other.pth").read_bytes()[:-700])
    mismatch = (f"error: other.pth into {NANO}: the checkpoint does not fit", "backbone.weight")
    for tool, arguments, facts in (
        ("test.py", ["other.pth"], mismatch),
        ("test.py", ["cut.pth"], ("error: cut.pth is damaged", f"(for {NANO})")),
        ("train.py", ["--cfg-options", "load_from=other.pth"], mismatch),
    ):
        status, output = run_python(PROGRAMS[tool], NANO, *arguments, cwd=data, check=False)
        assert status == 1
        assert "Traceback" not in output
        assert all(fact in output for fact in facts), output


@pytest.mark.parametrize("launcher", ["pytorch", "slurm", "mpi"])
def test_launcher_without_its_environment(refusal, launcher, data):
    if torch.cuda.is_available():
        pytest.skip("mmengine starts the processes where there is CUDA")
    assert "MASTER_ADDR" in refusal("train.py", NANO, "--launcher", launcher, cwd=data)


def test_amp_without_a_gpu(refusal, data):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "--amp needs a GPU" in refusal("train.py", NANO, "--amp", cwd=data)


def test_demo_without_images(refusal, tmp_path):
    assert "does not exist" in refusal("demo.py", "nope.jpg", NANO, "nope.pth", cwd=tmp_path)
    assert str(tmp_path) in refusal("demo.py", tmp_path, NANO, "nope.pth", cwd=tmp_path)


def test_averaging_masks(refusal, data):
    torch.save({}, data / "any.pth")
    assert "cannot average masks" in refusal("test.py", NANO, "any.pth", "--tta", cwd=data)


@pytest.mark.parametrize(
    "command",
    [("demo.py", "photos", "config.py", "model.pth"), ("run_exported.py", "m.onnx", "photos")],
)
def test_results_never_replace_the_images(run_tool, tmp_path, command):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"image")
    message = run_tool(*command, "--out-dir", "photos/../photos", cwd=tmp_path).message
    assert "--out-dir" in message
    assert [path.read_bytes() for path in folder.iterdir()] == [b"image"]
