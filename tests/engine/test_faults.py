"""After a fault training resumes from the last good checkpoint, with the same losses."""

import errno
import os
import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import training
from engine.training import STEPS

from dcnv4_mm.engine import atomic_writes, find_complete_checkpoint
from dcnv4_mm.engine.atomic_writes import AtomicLocalBackend


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Function that returns the losses of a run without faults, a dictionary per process."""

    @cache
    def train(processes=1, **options):
        folder = tmp_path_factory.mktemp("unbroken")
        assert training.run(folder, processes, **options) == [0] * processes
        return [training.losses(folder, rank) for rank in range(processes)]

    return train


def assert_same_losses(folder, expected):
    for rank, losses in enumerate(expected):
        assert losses.keys() == set(range(3 * STEPS))
        recorded = training.losses(folder, rank)
        assert recorded == pytest.approx(losses, rel=0, abs=1e-6), f"process {rank}"


@pytest.mark.parametrize(("by_epoch", "workers"), [(True, 0), (True, 2), (False, 0), (False, 2)])
def test_a_killed_process_changes_nothing(tmp_path, unbroken, by_epoch, workers):
    """Two processes over gloo; kill -9 of one in mid-epoch; dropout and augmentations are random.

    The losses after resuming equal those without a fault, step by step and in each process.
    """
    options = {"by_epoch": by_epoch, "workers": workers}
    expected = unbroken(2, **options)
    assert expected[0] != expected[1]
    assert training.run(tmp_path, 2, signal=signal.SIGKILL, **options)[1] == -signal.SIGKILL
    assert len(training.losses(tmp_path)) < 3 * STEPS
    assert training.run(tmp_path, 2, resume=True, **options) == [0, 0]
    assert_same_losses(tmp_path, expected)


@pytest.mark.parametrize("keep", [-1, 1])
@pytest.mark.parametrize("saving", ["full disk", "killed"])
def test_a_fault_while_saving_leaves_the_checkpoint_before(tmp_path, unbroken, saving, keep):
    options = {"checkpoint": {"max_keep_ckpts": keep}}
    (code,) = training.run(tmp_path, saving=saving, **options)
    assert code == (1 if saving == "full disk" else -signal.SIGKILL)
    assert [file.name for file in tmp_path.glob("*.pth")] == ["epoch_1.pth"]
    assert training.run(tmp_path, resume=True, **options) == [0]
    assert_same_losses(tmp_path, unbroken())
    left = sorted(file.name for file in tmp_path.glob("*epoch_*"))
    assert left == (["epoch_3.pth"] if keep == 1 else [f"epoch_{n}.pth" for n in (1, 2, 3)])


def test_a_scheduler_that_ends_the_run_changes_nothing(tmp_path, unbroken):
    assert training.run(tmp_path, signal=signal.SIGTERM) == [-signal.SIGTERM]
    assert training.run(tmp_path, resume=True) == [0]
    assert_same_losses(tmp_path, unbroken())


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def empty(file):
    file.write_bytes(b"")


def flip_a_bit(file):
    """In the middle of a weight, where torch itself does not notice."""
    content = file.read_bytes()
    weight = torch.load(file, weights_only=False)["state_dict"]["layers.0.weight"]
    where = content.index(weight.numpy().tobytes())
    file.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])


def leave_only_the_weights(file):
    torch.save({"state_dict": {}}, file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert training.run(folder) == [0]
    return {file.name: file.read_bytes() for file in folder.glob("*") if file.is_file()}


@pytest.fixture
def run_folder(trained, tmp_path):
    """A folder with the three checkpoints of a run."""
    for name, content in trained.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_3.pth"))
    return tmp_path


@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_a_bit, leave_only_the_weights, Path.unlink]
)
def test_a_damaged_last_checkpoint_is_skipped(run_folder, damage, monkeypatch):
    logged = []
    monkeypatch.setattr(atomic_writes, "print_log", lambda message, **_: logged.append(message))
    last = run_folder / "epoch_3.pth"
    damage(last)
    assert find_complete_checkpoint(run_folder) == str(run_folder / "epoch_2.pth")
    (message,) = logged
    assert message.startswith(f"Skipped: {last} ")


def test_training_goes_on_before_a_damaged_checkpoint(run_folder, trained, unbroken):
    truncate(run_folder / "epoch_3.pth")
    (run_folder / "rank0.jsonl").write_text("")
    assert training.run(run_folder, resume=True) == [0]
    recorded = training.losses(run_folder)
    assert recorded.keys() == set(range(2 * STEPS, 3 * STEPS))
    assert recorded == pytest.approx({step: unbroken()[0][step] for step in recorded}, abs=1e-6)


def test_an_empty_pointer_is_no_obstacle(run_folder):
    """A process may be killed between emptying and filling the file."""
    (run_folder / "last_checkpoint").write_text("")
    assert find_complete_checkpoint(run_folder) == str(run_folder / "epoch_3.pth")


def test_numbers_are_compared_as_numbers(run_folder):
    (run_folder / "epoch_2.pth").rename(run_folder / "epoch_10.pth")
    (run_folder / "last_checkpoint").unlink()
    assert find_complete_checkpoint(run_folder) == str(run_folder / "epoch_10.pth")


def test_a_first_start_has_nothing_to_resume(tmp_path):
    assert find_complete_checkpoint(tmp_path) is None


def test_a_checkpoint_elsewhere_is_left_to_mmengine(tmp_path):
    (tmp_path / "last_checkpoint").write_text("s3://bucket/epoch_3.pth")
    assert find_complete_checkpoint(tmp_path) == "s3://bucket/epoch_3.pth"


def test_no_silent_start_from_the_beginning(run_folder, make_runner):
    for file in run_folder.glob("*.pth"):
        truncate(file)
    with pytest.raises(ValueError, match=r"none of the 3 checkpoints .* can be resumed from"):
        find_complete_checkpoint(run_folder)
    hook = {"type": "dcnv4_mm.SafeCheckpointHook"}
    runner = make_runner(work_dir=".", checkpoint=hook, resume=True)
    with pytest.raises(ValueError, match="none of the 3 checkpoints"):
        runner.train()


def test_a_resumed_run_says_which_settings_it_uses(make_runner, tmp_path):
    hook = {"type": "dcnv4_mm.SafeCheckpointHook"}
    make_runner(epochs=1, checkpoint=hook).train()
    settings = {"type": "AdamW", "lr": 1.0, "weight_decay": 0.5}
    runner = make_runner(checkpoint=hook, resume=True, optim_wrapper={"optimizer": settings})
    runner.train()
    log = max((tmp_path / "run").rglob("*.log"), key=os.path.getmtime).read_text()
    assert "lr 0.01 (config: 1.0), weight_decay 0.01 (config: 0.5)" in log
    settings = {"type": "SGD", "lr": 0.01, "momentum": 0.9}
    runner = make_runner(checkpoint=hook, resume=True, optim_wrapper={"optimizer": settings})
    with pytest.raises(ValueError, match="resume with the same optimizer"):
        runner.train()


def test_the_best_checkpoint_stays_until_there_is_a_better_one(make_runner, tmp_path, monkeypatch):
    """Old checkpoints are removed only after the new ones are written."""
    runner = make_runner(
        epochs=3, checkpoint={"type": "dcnv4_mm.SafeCheckpointHook", "max_keep_ckpts": 1}
    )
    metric = runner.val_evaluator.metrics[0]
    monkeypatch.setattr(metric, "compute_metrics", lambda _: {"ap": np.float64(runner.epoch)})
    put = AtomicLocalBackend.put

    def fail(self, content, path):
        if "best_ap_epoch_3" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, content, path)

    monkeypatch.setattr(AtomicLocalBackend, "put", fail)
    with pytest.raises(OSError, match="No space left"):
        runner.train()
    names = sorted(file.name for file in (tmp_path / "run").glob("*.pth"))
    assert names == ["best_ap_epoch_2.pth", "epoch_3.pth"]


def test_a_failed_write_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.pth"
    backend = AtomicLocalBackend()
    backend.put(b"first", path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left: 6 bytes could not be written") as error:
        backend.put(b"second", path)
    assert error.value.errno == errno.ENOSPC
    assert [file.name for file in path.parent.iterdir()] == ["a.pth"]
    assert path.read_bytes() == b"first"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    AtomicLocalBackend().put(b"content", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("randomness", "message"),
    [
        ({"seed": None}, "needs a seed"),
        ({"seed": 0, "diff_rank_seed": True}, "order of the data differs"),
    ],
)
def test_steps_need_a_seed(make_runner, randomness, message):
    runner = make_runner(custom_hooks=[{"type": "dcnv4_mm.SeedStepsHook"}], randomness=randomness)
    with pytest.raises(ValueError, match=message):
        runner.train()
