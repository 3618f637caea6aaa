"""publish_checkpoint.py and print_config.py: what is passed on is complete, and no more."""

import hashlib
import re

import pytest
import torch

from dcnv4_mm.checkpoints.files import read_file


def test_weights_and_class_names_alone(run_tool, tmp_path):
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1000)[:2]}
    names = {"classes": ("disk", "ring"), "palette": [(1, 2, 3)], "root": "/home/somebody"}
    checkpoint = {
        "meta": {"epoch": 3, "cfg": "secret = '/home/somebody'", "dataset_meta": names},
        "state_dict": weights,
        "optimizer": {"state": {0: torch.zeros(10000)}},
    }
    torch.save(checkpoint, tmp_path / "epoch_3.pth")
    result = run_tool("publish_checkpoint.py", "epoch_3.pth", "model.pth", cwd=tmp_path)
    assert result.message is None
    (path,) = tmp_path.glob("model-*.pth")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"model-{checksum[:8]}.pth"
    assert re.search(f"2 tensors.*SHA-256 {checksum}", result.stdout)
    assert b"somebody" not in path.read_bytes()
    assert path.stat().st_size < 4000
    published = read_file(path)
    kept = {"classes": names["classes"], "palette": names["palette"]}
    assert published["meta"] == {"dataset_meta": kept}
    assert all(torch.equal(published["state_dict"][name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("content", "printed"),
    [
        ({"model": {}}, "'state_dict'"),
        ({"state_dict": {"a": 1}}, "got a"),
        ({"state_dict": {"a": 1, "b": torch.ones(1)}}, "not: a"),
        ({"state_dict": {1: torch.ones(1)}}, "not: 1"),
        ([1], "list"),
    ],
)
def test_other_files_are_refused(run_tool, tmp_path, content, printed):
    torch.save(content, tmp_path / "epoch_3.pth")
    message = run_tool("publish_checkpoint.py", "epoch_3.pth", "model.pth", cwd=tmp_path).message
    assert message.startswith("error: epoch_3.pth")
    assert printed in message
    assert list(tmp_path.glob("model*")) == []


def test_print_config(run_tool, tmp_path):
    (tmp_path / "base.py").write_text("model = dict(depth=1, width=2)\n")
    (tmp_path / "leaf.py").write_text('_base_ = "base.py"\nmodel = dict(depth=3)\n')
    result = run_tool("print_config.py", "leaf.py", "--cfg-options", "model.name=x", cwd=tmp_path)
    assert result.stdout == "model = dict(depth=3, name='x', width=2)\n\n"
