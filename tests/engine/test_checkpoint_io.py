"""Checkpoints of mmengine's runner load and resume with current torch, without running code."""

import functools
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint

from dcnv4_mm.checkpoints import to_released
from dcnv4_mm.engine import load_from_local


def mark_when_run(path):
    """An object whose unpickling makes a file."""
    return type("Code", (), {"__reduce__": lambda _: (os.system, (f"touch {path}",))})()


def assert_same(one, other):
    """Compares nested containers by value and exact type."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for part, counterpart in zip(one, other, strict=True):
            assert_same(part, counterpart)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, HistoryBuffer):
        assert_same(one.data, other.data)
        assert one.max_length == other.max_length
    else:
        assert one == other


def test_runner_checkpoint_loads(make_runner, tmp_path):
    make_runner().train()
    path = str(tmp_path / "run" / "epoch_2.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path)
    # Just written by this test, hence safe to load as a program.
    assert_same(CheckpointLoader.load_checkpoint(path), torch.load(path, weights_only=False))
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path)


WHOSE = """
import os, sys, types
import dcnv4_mm.engine, dcnv4_mm.integrations
from mmengine.fileio import get_file_backend
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import CheckpointLoader


def show():
    # One of them was built before.
    objects = [get_file_backend("a", enable_singleton=cached) for cached in (False, True)]
    classes = [type(backend) for backend in objects]
    classes += [CheckpointLoader._get_checkpoint_loader(p) for p in ("a.pth", "https://a/b.pth")]
    print(*(each.__module__.split(".")[0] for each in classes), flush=True)


MODELS.get("dcnv4_mm.FlashInternImage")
hooks = [HOOKS.build(dict(type=f"dcnv4_mm.{n}")) for n in ("StrictLoadHook", "SafeCheckpointHook")]
runner = types.SimpleNamespace(_resume=False, _load_from=None)
for install in sys.argv[1:]:
    if (child := os.fork()) == 0:
        show(), exec(install), show(), exec(install), show()
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_only_an_explicit_call_replaces_mmengines_readers_and_writers():
    calls = ["dcnv4_mm.engine.install()", "dcnv4_mm.integrations.install()"]
    calls += ["hooks[0].before_run(runner)", "hooks[1].before_run(runner)"]
    command = [sys.executable, "-c", WHOSE, *calls]
    run = subprocess.run(command, capture_output=True, text=True)
    rows = [line.split() for line in run.stdout.splitlines()]
    once = [["mmengine"] * 4, ["dcnv4_mm"] * 4, ["dcnv4_mm"] * 4]
    assert rows == once * len(calls), run.stderr


@pytest.mark.parametrize("choose", ["latest", "by_name"])
def test_resuming_equals_not_stopping(make_runner, tmp_path, choose):
    uninterrupted = make_runner(work_dir="uninterrupted", epochs=3)
    uninterrupted.train()
    checkpoint = tmp_path / "uninterrupted" / "epoch_1.pth"
    if choose == "latest":
        (tmp_path / "resumed").mkdir()
        (tmp_path / "resumed" / "last_checkpoint").write_text(str(checkpoint))
    load_from = str(checkpoint) if choose == "by_name" else None
    resumed = make_runner(work_dir="resumed", epochs=3, resume=True, load_from=load_from)
    resumed.train()
    for key in ("state_dict", "optimizer", "param_schedulers"):
        one, other = (
            load_from_local(str(tmp_path / folder / "epoch_3.pth"))[key]
            for folder in ("uninterrupted", "resumed")
        )
        assert_same(one, other)
    scalars = resumed.message_hub.log_scalars["train/loss"]
    assert len(scalars.data[0]) == 6
    assert scalars.mean(2) == pytest.approx(
        uninterrupted.message_hub.get_scalar("train/loss").mean(2)
    )


def test_restored_kinds(tmp_path):
    content = {
        "state_dict": {},
        "scalars": [np.float64(0.1), np.float32(2), np.int64(-3), np.uint8(7), np.bool_(True)],
        "text": np.str_("größe"),
        "key": {np.str_("rack"): -1},
        "arrays": (
            np.arange(6).reshape(2, 3),
            np.asfortranarray(np.ones((2, 3))),
            np.zeros((0, 2)),
        ),
        "bools": np.array([True, False]),
        "texts": np.array(["a", "bcd"]),
        "big endian": np.arange(3, dtype=">i4"),
        "empty log": HistoryBuffer(),
        "log": HistoryBuffer([1.0, 2.0], [1, 1], max_length=5),
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    restored = load_from_local(str(path))
    assert_same(restored, content)
    restored["arrays"][0][0, 0] = 9
    restored["log"].update(3.0)
    assert restored["log"].max() == 3.0


def forged_dtype(code, state):
    def reduce(_):
        return np.dtype, (code, False, True), state

    return type("Dtype", (), {"__reduce__": reduce})()


@pytest.mark.parametrize(
    "dtype",
    [
        forged_dtype("O8", (3, "|", None, None, None, -1, -1, 63)),
        forged_dtype("V8", (4, "|", None, ("f",), {"f": 1}, 8, 1, 63, None)),
        forged_dtype("f8", "nonsense"),
    ],
)
def test_forged_numpy_types_are_refused(tmp_path, dtype):
    """A crafted dtype can make numpy read numbers as addresses of objects."""

    def reduce(_):
        return np.float64(0).__reduce__()[0], (dtype, b"\x01" * 8)

    path = tmp_path / "checkpoint.pth"
    torch.save({"score": type("Scalar", (), {"__reduce__": reduce})()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_from_local(str(path))


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"array": np.array([{}, []], dtype=object)}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_from_local(str(path))


def test_a_log_cannot_replace_methods(tmp_path):
    """mmengine itself would set the file's entries as attributes of the class."""
    log = HistoryBuffer([1.0], [1])
    state = {**log.__getstate__(), "statistics_methods": {"mean": "replaced"}}
    forged = type("Log", (), {"__reduce__": lambda _: (HistoryBuffer, (), state)})()
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": {}, "log": forged}, path)
    assert load_from_local(str(path))["log"].statistics("mean") == 1.0
    assert HistoryBuffer._statistics_methods["mean"] is HistoryBuffer.mean


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([torch.zeros(1)], "list"),
        ({"optimizer": {"lr": 0.1}}, "optimizer"),
        ({"ema_state_dict": {"weight": torch.zeros(1)}, "epoch": 3}, "ema_state_dict"),
        ({"model": "t", "ema_state_dict": {"weight": torch.zeros(1)}}, "ema_state_dict"),
        ({"state_dict": None, "ema": {"weight": torch.zeros(1)}}, "ema"),
        ({"state_dict": {3: torch.zeros(1)}}, "3"),
    ],
)
def test_files_of_which_hosts_would_load_nothing_are_refused(tmp_path, content, named):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth.*\b{named}\b"):
        load_from_local(str(tmp_path / "other.pth"))


def test_containers_that_hold_themselves_are_refused(tmp_path):
    loop = []
    loop.append(loop)
    path = tmp_path / "checkpoint.pth"
    torch.save({"loop": loop}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_from_local(str(path))


@pytest.mark.parametrize("resume", [False, True])
def test_code_in_a_checkpoint_is_not_run(make_runner, make_model, tmp_path, resume):
    mark, path = tmp_path / "was_run", tmp_path / "bad.pth"
    torch.save({"state_dict": make_model().state_dict(), "meta": mark_when_run(mark)}, path)
    runner = make_runner(load_from=str(path), resume=resume)
    with pytest.raises(ValueError, match=r"system.*nothing of it was run"):
        runner.train()
    assert not mark.exists()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder at an address, and directs downloads into another."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_download_is_kept(server, tmp_path):
    folder, address = server
    torch.save({"x": torch.ones(1), "score": np.float64(2)}, folder / "a.pth")
    loaded = CheckpointLoader.load_checkpoint(f"{address}/a.pth?download=true")
    assert loaded == {"x": torch.ones(1), "score": 2}
    assert (tmp_path / "hub" / "checkpoints" / "a.pth").exists()
    (folder / "a.pth").unlink()
    CheckpointLoader.load_checkpoint(f"{address}/a.pth")


def test_download_that_changes_is_refused(server, tmp_path):
    folder, address = server
    torch.save({"x": torch.ones(1)}, folder / "a.pth")
    CheckpointLoader.load_checkpoint(f"{address}/a.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "hub" / "checkpoints" / "a.pth")
    with pytest.raises(ValueError, match="has changed since it was first used"):
        CheckpointLoader.load_checkpoint(f"{address}/a.pth")


def test_downloaded_code_is_not_run(server, tmp_path):
    folder, address = server
    torch.save(mark_when_run(tmp_path / "was_run"), folder / "bad.pth")
    with pytest.raises(ValueError, match="nothing of it was run"):
        CheckpointLoader.load_checkpoint(f"{address}/bad.pth")
    assert not (tmp_path / "was_run").exists()


def test_failed_download_says_what_to_do(server, tmp_path):
    _, address = server
    with pytest.raises(ConnectionError, match="put it at"):
        CheckpointLoader.load_checkpoint(f"{address}/nowhere.pth")
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_released_names_of_another_model_raise_through_mmengine(make_model, tmp_path):
    released = to_released(make_model())
    del released["backbone.levels.2.blocks.0.mlp.fc1.bias"]
    path = tmp_path / "released.pth"
    torch.save({"state_dict": released}, path)
    model = make_model()
    with pytest.raises(ValueError, match=r"missing 1: levels\.2\.blocks\.0\.mlp\.fc1\.bias"):
        load_checkpoint(model, str(path))
