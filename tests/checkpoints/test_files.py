"""Untrusted files: no code in them is run, and the error names the fault."""

import argparse
import functools
import os
import pathlib
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from dcnv4_mm.checkpoints.files import InertObject, read_file

WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(1000)}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    """Saves in each of torch's two formats; returns the path."""

    def save(content):
        path = tmp_path / "checkpoint.pth"
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Pickle accepts only what can be called as a function to call."""


def test_weights(save):
    weights = read_file(save(WEIGHTS))
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    "call",
    [
        lambda mark: Calls(os.system, f"touch {mark}"),
        lambda mark: Calls(exec, f"open({str(mark)!r}, 'w')"),
        lambda mark: Calls(open, str(mark), "w"),
        lambda mark: Calls(functools.partial, os.system, f"touch {mark}"),
        lambda mark: Calls(Calls(getattr, Calls(__import__, "os"), "system"), f"touch {mark}"),
        lambda mark: Calls(Calls(getattr, Calls(getattr, "", "join"), "__call__"), []),
        lambda mark: Calls(Calls(getattr, [], "append"), 1),
        lambda mark: Calls(types.SimpleNamespace),
        lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: Calls(subprocess.Popen, ["touch", str(mark)]),
        lambda mark: Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {mark}"))),
        lambda mark: Calls(torch.save, {}, str(mark)),
        lambda mark: Calls(torch.serialization.add_safe_globals, [os.system]),
        lambda mark: {Calls(os.system, f"touch {mark}"): 1},
        lambda mark: torch.nn.Linear(1, 1),
    ],
)
def test_code_is_refused_and_not_run(save, tmp_path, call):
    mark = tmp_path / "was_run"
    path = save({"state_dict": WEIGHTS, "meta": [call(mark)]})
    with pytest.raises(ValueError, match="nothing of it was run") as error:
        read_file(path)
    assert not mark.exists()
    assert "weights_only" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_code_of_other_protocols_is_not_run(tmp_path, protocol):
    """Torch itself writes the second; a bare pickle is no checkpoint either."""
    mark, path = tmp_path / "was_run", tmp_path / "checkpoint.pth"
    code = Calls(os.system, f"touch {mark}")
    for legacy in (True, False):
        options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
        torch.save({"meta": code}, path, **options)
        with pytest.raises(ValueError):
            read_file(path)
    path.write_bytes(pickle.dumps(code, protocol))
    with pytest.raises(ValueError):
        read_file(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:'torch.load' received", "ignore:.torch.jit")
def test_scripted_model_is_refused(tmp_path):
    """An archive of torch.jit holds programs."""
    path = tmp_path / "checkpoint.pth"
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), path)
    with pytest.raises(ValueError):
        read_file(path)


def test_nothing_stays_allowed(save):
    torch.serialization.add_safe_globals([(dict, "numpy.dtype"), (list, "somewhere.Else")])
    try:
        before = set(torch.serialization.get_safe_globals())
        read_file(save({"score": np.float64(1.5)}))
        assert set(torch.serialization.get_safe_globals()) == before
        with pytest.raises(ValueError):
            read_file(save(Calls(exec, "")))
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()


def test_what_the_user_allowed_is_read(save):
    with torch.serialization.safe_globals([types.SimpleNamespace]):
        assert read_file(save(types.SimpleNamespace(x=1))).x == 1


def test_scores_are_records(save):
    content = read_file(save({"best": np.float64(0.5), "curve": np.arange(3), "none": np.zeros(0)}))
    assert content["best"].name.endswith("multiarray.scalar")
    assert all(isinstance(value, InertObject) for value in content.values())


def test_scores_of_older_numpy(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"x": np.float64(0.5)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert read_file(path)["x"].name == "numpy.core.multiarray.scalar"


@pytest.mark.parametrize(
    "settings", [argparse.Namespace(lr=0.1), pathlib.PurePosixPath("a/b"), pathlib.Path("a/b")]
)
def test_settings_of_trainers_are_inert_records(save, settings):
    content = read_file(save({"args": settings, "model": {"x": torch.ones(1)}}))
    assert isinstance(content["args"], InertObject)
    assert content["model"]["x"] == 1


def test_a_trainers_settings_are_read(save, monkeypatch):
    """The original's classification trainer stores its settings, of a class derived from dict."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = module.CfgNode(MODEL=module.CfgNode(TYPE="flash"))
    config.__dict__["__immutable__"] = True
    path = save({"model": WEIGHTS, "config": config})
    monkeypatch.delitem(sys.modules, "yacs.config")
    content = read_file(path)
    assert content["config"] == {"MODEL": {"TYPE": "flash"}}
    assert torch.equal(content["model"]["b"], WEIGHTS["b"])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_truncated(save, share):
    path = save(WEIGHTS)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"checkpoint\.pth is (damaged|empty)"):
        read_file(path)


# Torch warns of unusual pickle protocols before it gives up.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"MZ\x00 something else", "damaged or not a checkpoint"),
        (b"\x80\x04\x95", "damaged or not a checkpoint"),
    ],
)
def test_other_files(tmp_path, data, message):
    path = tmp_path / "other.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_file(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="download it"):
        read_file(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path)


@pytest.fixture
def safetensors(tmp_path):
    module = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = tmp_path / "model.safetensors"
    module.save_file(WEIGHTS, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_safetensors(safetensors, name):
    path = safetensors.rename(safetensors.with_name(name))
    weights = read_file(path)
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(weights[key], WEIGHTS[key]) for key in WEIGHTS)


def test_safetensors_without_the_library(safetensors, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match=r"model\.safetensors.*pip install safetensors"):
        read_file(safetensors)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.99])
def test_truncated_safetensors(safetensors, ratio):
    data = safetensors.read_bytes()
    safetensors.write_bytes(data[: int(ratio * len(data))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        read_file(safetensors)
