"""convert.py: there and back, and what it refuses."""

import pytest
import torch

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released, to_released


@pytest.fixture
def convert(run_tool, tmp_path):
    return lambda *arguments: run_tool("convert.py", *arguments, cwd=tmp_path)


@pytest.fixture
def released(tmp_path):
    """A detector's file in the released names: a backbone and a head."""
    weights = to_released(FlashInternImage("nano"))
    weights = {f"backbone.{name}": tensor.clone() for name, tensor in weights.items()}
    for index, tensor in enumerate(weights.values()):
        tensor.view(-1)[0] = index
    weights["roi_head.fc.weight"] = torch.ones(2)
    path = tmp_path / "released.pth"
    torch.save({"meta": {}, "state_dict": weights}, path)
    return path, weights


def test_there_and_back(convert, released, tmp_path):
    path, weights = released
    ours, back = tmp_path / "ours.pth", tmp_path / "back.pth"
    assert convert(path, ours).message is None
    converted = torch.load(ours)["state_dict"]
    own_names = {f"backbone.{name}" for name in FlashInternImage("nano").state_dict()}
    assert set(converted) == own_names | {"roi_head.fc.weight"}
    load_released(FlashInternImage("nano"), ours)
    assert convert(ours, back, "--to-released").message is None
    restored = torch.load(back)["state_dict"]
    assert list(restored) == list(weights)
    assert all(torch.equal(restored[name], weights[name]) for name in weights)


def test_an_existing_file_is_kept_unless_forced(convert, released, tmp_path):
    path, _ = released
    target = tmp_path / "target.pth"
    target.write_text("precious")
    refused = convert(path, target)
    assert "--force" in refused.message
    assert target.read_text() == "precious"
    assert convert(path, target, "--force").message is None
    assert "state_dict" in torch.load(target)


def test_the_entry_can_be_chosen(convert, tmp_path):
    plain = to_released(FlashInternImage("nano"))
    averaged = {name: tensor + 1 for name, tensor in plain.items()}
    torch.save({"model": plain, "model_ema": averaged}, tmp_path / "both.pth")
    name = "patch_embed.conv1.bias"
    for arguments, expected in (((), averaged), (("--entry", "model"), plain)):
        assert (
            convert(tmp_path / "both.pth", tmp_path / "out.pth", "--force", *arguments).message
            is None
        )
        found = torch.load(tmp_path / "out.pth")["state_dict"][name]
        assert torch.equal(found, expected[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"weight": torch.zeros(1)}}, "no FlashInternImage"),
        ([1, 2], "must be a dictionary"),
    ],
)
def test_what_it_refuses(convert, content, message, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    result = convert(tmp_path / "file.pth", tmp_path / "out.pth")
    assert message in result.message
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth"]


def test_wrong_direction(convert, released, tmp_path):
    result = convert(released[0], tmp_path / "out.pth", "--to-released")
    assert "--to-released" in result.message
