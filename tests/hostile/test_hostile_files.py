"""Forged files: every tool refuses them with one line that names the file, and runs nothing."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine", reason="mmengine is not installed")
from PIL import Image

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints.files import read_file
from dcnv4_mm.engine.pickles import load_pickle
from dcnv4_mm.export.metadata import KEY, embed, read_metadata


class Code:
    """An object whose unpickling makes the file ``was_run``."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder / 'was_run'}",)


def bare(path, code):
    path.write_bytes(pickle.dumps(code))


def as_value(path, code):
    torch.save({"state_dict": {"weight": torch.ones(1)}, "meta": code}, path)


def as_key(path, code):
    """In the format before torch 1.6."""
    content = {"state_dict": {"weight": torch.ones(1)}, "optimizer": [code]}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bomb(path, code):
    """A small archive whose content is larger by orders of magnitude."""
    torch.save({"weight": torch.ones(1)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/1", bytes(1 << 24))


def huge(path, code):
    """A tensor that claims to have 10^15 elements."""
    storage = torch.ones(1)
    torch.save({"weight": storage}, path)
    content = path.read_bytes()
    forged = content.replace(b"K\x01\x85", b"K\xff\x85")
    assert forged != content
    path.write_bytes(forged)


CHECKPOINTS = [bare, as_value, as_key, bomb, huge]
# By tool: the arguments for a checkpoint FILE.
TOOLS = {
    "convert.py": ("FILE", "out.pth"),
    "convert_bev_boxes.py": ("FILE", "out.pth"),
    "publish_checkpoint.py": ("FILE", "out.pth"),
    "export.py": ("config.py", "FILE", "out.pt2"),
}
CONFIG = """
default_scope = 'mmengine'
model = dict(type='dcnv4_mm.FlashInternImage', arch='nano')
"""


@pytest.mark.parametrize("forge", CHECKPOINTS)
def test_checkpoints(run_tool, tmp_path, forge):
    path = tmp_path / "forged.pth"
    forge(path, Code(tmp_path))
    (tmp_path / "config.py").write_text(CONFIG)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"forged\.pth"):
        read_file(path)
    for tool, arguments in TOOLS.items():
        words = [str(path) if word == "FILE" else word for word in arguments]
        message = run_tool(tool, *words, cwd=tmp_path).message
        assert message.startswith("error: "), tool
        assert "forged.pth" in message
        assert "\n" not in message
    # Neither the mark of code that was run, nor a part of a result.
    assert sorted(tmp_path.iterdir()) == before


def array(*state):
    """An object that is pickled as an array of numpy with this state."""
    reconstruct = np.zeros(1).__reduce__()[0]
    reduced = (reconstruct, (np.ndarray, (0,), b"b"), state)
    return type("Array", (), {"__reduce__": lambda _: reduced})()


def forged_dtype(path, code):
    """Numbers that numpy would take for the addresses of objects."""
    dtype = type("Dtype", (), {"__reduce__": lambda _: (np.dtype, ("O8", False, True))})()
    path.write_bytes(pickle.dumps(array(1, (1,), dtype, False, bytes(8))))


def objects(path, code):
    path.write_bytes(pickle.dumps({"metainfo": np.array([code], dtype=object), "data_list": []}))


def too_short(path, code):
    """An array with fewer bytes than its shape says."""
    path.write_bytes(pickle.dumps(array(1, (1 << 40,), np.dtype("f8"), False, bytes(8))))


@pytest.mark.parametrize("forge", [bare, forged_dtype, objects, too_short])
def test_info_files(run_tool, tmp_path, forge):
    path = tmp_path / "forged.pkl"
    forge(path, Code(tmp_path))
    with pytest.raises(ValueError, match=r"forged\.pkl"):
        load_pickle(path)
    result = run_tool("check_dataset.py", "nuscenes", "--val", path, tmp_path, cwd=tmp_path)
    assert result.message == 1
    assert "forged.pkl" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["forged.pkl"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_info_files_are_read_as_they_are(tmp_path, protocol):
    content = {
        "metainfo": {"categories": {np.str_("car"): 0}, "version": "v"},
        "arrays": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((2, 3), ">f4"))],
        "scalars": (np.float32(2), np.bool_(True), np.int64(-3)),
        "names": np.array(["a", "bcd"]),
        "bytes": b"\x00\xff",
    }
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    read = load_pickle(path)
    np.testing.assert_equal(read, content)
    # numpy itself reads arrays of the other byte order as its own.
    plain = pickle.loads(path.read_bytes())
    assert [a.dtype for a in read["arrays"]] == [a.dtype for a in plain["arrays"]]
    # What the converters write from it is numpy's again.
    assert b"dcnv4" not in pickle.dumps(read)


def brackets(path):
    path.write_text("[" * 1_000_000)


def digits(path):
    path.write_text(json.dumps({"images": [{"id": 1}], "annotations": [], "categories": []}))
    path.write_text(path.read_text().replace('"id": 1', f'"id": {"9" * 5000}'))


@pytest.mark.parametrize("forge", [brackets, digits])
def test_annotations(run_tool, tmp_path, forge):
    forge(tmp_path / "forged.json")
    arguments = ("coco", "--val", tmp_path / "forged.json", tmp_path)
    result = run_tool("check_dataset.py", *arguments, cwd=tmp_path)
    assert result.message == 1
    assert "forged.json" in result.stderr


def archive(path, metadata):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data/weights", b"")
    embed(path, metadata)


FIELDS = {
    "task": "segmentation",
    "config": "x",
    "classes": None,
    "palette": None,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "channels": "RGB",
    "size_divisor": 1,
    "resize": [],
}


@pytest.mark.parametrize(
    "change",
    [
        {"task": 3},
        {"mean": ["__import__('os')"] * 3},
        {"std": list(range(10_000))},
        {"size_divisor": 10**12},
        {"classes": [{"a": 1}]},
        {"palette": "red"},
        {"resize": "all"},
        {"filler": "x" * (2 << 20)},
    ],
    ids=str,
)
def test_metadata_of_programs(run_tool, tmp_path, change):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    path = tmp_path / "forged.pt2"
    archive(path, FIELDS | change)
    with pytest.raises(ValueError, match=r"forged\.pt2"):
        read_metadata(path)
    message = run_tool("run_exported.py", path, "image.png", cwd=tmp_path).message
    assert "forged.pt2" in message
    assert sorted(file.name for file in tmp_path.iterdir()) == ["forged.pt2", "image.png"]


def garbage(path):
    path.write_bytes(bytes(range(256)) * 10)


def pickled(path):
    """A .pt2 file with code in place of a program."""
    bare(path, Code(path.parent))


def zipped(path):
    """The same in an archive, without metadata of ours."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data/constants/x.pt", pickle.dumps(Code(path.parent)))
        file.writestr("model/archive_format", "pt2")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("forge", [garbage, pickled, zipped])
def test_programs(run_tool, tmp_path, forge, suffix):
    """They are refused before anything in them is loaded."""
    if suffix == ".onnx":
        pytest.importorskip("onnx", reason="onnx is not installed")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    path = tmp_path / f"forged{suffix}"
    forge(path)
    message = run_tool("run_exported.py", path, "image.png", cwd=tmp_path).message
    assert message.startswith("error: ")
    assert path.name in message
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "image.png"]


def onnx_model(path, input_name="image", **tensor):
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if tensor:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in tensor.items():
            weight.external_data.add(key=key, value=value)
    node = helper.make_node("Mul", [input_name, "w"], ["logits"])
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, None, None])
        for n in (input_name, "logits")
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(FIELDS | {"task": "classification"})
    path.write_bytes(model.SerializeToString())
    assert onnx is not None


@pytest.mark.parametrize(
    "options",
    [
        {"location": "../outside.bin"},
        {"location": "/etc/hostname"},
        {"location": "missing.bin", "length": "1000000000000"},
        {"input_name": "other"},
    ],
    ids=str,
)
def test_onnx_models(run_tool, tmp_path, options):
    """Weights outside the file's folder, missing ones, and inputs of another name."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(np.float32(1).tobytes())
    Image.new("RGB", (8, 8)).save(folder / "image.png")
    onnx_model(folder / "forged.onnx", **options)
    message = run_tool("run_exported.py", "forged.onnx", "image.png", cwd=folder).message
    assert message.startswith("error: forged.onnx")
    assert "\n" not in message


def test_a_model_that_fits_nothing_is_no_crash(tmp_path):
    """The corpus is refused for what it is: the same files without a forged part are accepted."""
    torch.save({"state_dict": FlashInternImage("nano").state_dict()}, tmp_path / "good.pth")
    assert read_file(tmp_path / "good.pth")["state_dict"]
    archive(tmp_path / "good.pt2", FIELDS)
    assert read_metadata(tmp_path / "good.pt2") == FIELDS
