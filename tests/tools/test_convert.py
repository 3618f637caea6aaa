"""convert.py: there and back, and what it refuses."""

import hashlib

import pytest
import torch
from helpers import manifest

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.checkpoints import load_released, to_released

DINO = "dino_4scale_flash_internimage_t_1x_coco"


@pytest.fixture
def convert(run_tool, tmp_path):
    return lambda *arguments: run_tool("convert.py", *arguments, cwd=tmp_path)


def written(target):
    """The file that a conversion to ``target`` has made."""
    (path,) = target.parent.glob(f"{target.stem}-*{target.suffix}")
    return path


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
    result = convert(path, ours)
    assert result.message is None
    assert f"{len(weights)} tensors loaded, from the entry 'state_dict'" in result.stdout
    assert "patch_embed.norm1.1.weight -> backbone.patch_embed.norm1.weight" in result.stdout
    converted = torch.load(written(ours))["state_dict"]
    own_names = {f"backbone.{name}" for name in FlashInternImage("nano").state_dict()}
    assert set(converted) == own_names | {"roi_head.fc.weight"}
    load_released(FlashInternImage("nano"), written(ours))
    assert convert(written(ours), back, "--to-released").message is None
    restored = torch.load(written(back))["state_dict"]
    assert list(restored) == list(weights)
    assert all(torch.equal(restored[name], weights[name]) for name in weights)


def test_the_name_has_the_checksum(convert, released, tmp_path):
    result = convert(released[0], tmp_path / "ours.pth")
    path = written(tmp_path / "ours.pth")
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert path.name == f"ours-{digits}.pth"
    assert str(path) in result.stdout


def test_nothing_is_converted_twice(convert, released, tmp_path):
    path, _ = released
    assert convert(path, tmp_path / "ours.pth").message is None
    ours = written(tmp_path / "ours.pth")
    before = ours.read_bytes()
    assert "--force" in convert(path, tmp_path / "ours.pth").message
    assert "converted already" in convert(ours, tmp_path / "again.pth").message
    assert ours.read_bytes() == before
    assert convert(path, tmp_path / "ours.pth", "--force").message is None
    # The same content has the same name.
    assert written(tmp_path / "ours.pth") == ours


def test_a_whole_dino_and_its_copies(convert, tmp_path):
    weights = {
        name: torch.tensor(float(i)).expand(shape)
        for i, (name, shape) in enumerate(manifest("dino", DINO).items())
    }
    copies = {"ema_" + name.replace(".", "_"): tensor for name, tensor in weights.items()}
    torch.save({"state_dict": weights | copies}, tmp_path / "dino.pth")
    result = convert(tmp_path / "dino.pth", tmp_path / "ours.pth")
    assert f"left out {len(copies)} (a second copy of the weights)" in result.stdout
    ours = torch.load(written(tmp_path / "ours.pth"))["state_dict"]
    assert "decoder.layers.5.cross_attn.value_proj.bias" in ours
    convert(written(tmp_path / "ours.pth"), tmp_path / "back.pth", "--to-released")
    back = torch.load(written(tmp_path / "back.pth"))["state_dict"]
    assert list(back) == list(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_the_entry_can_be_chosen(convert, tmp_path):
    plain = to_released(FlashInternImage("nano"))
    averaged = {name: tensor + 1 for name, tensor in plain.items()}
    torch.save({"model": plain, "model_ema": averaged}, tmp_path / "both.pth")
    name = "patch_embed.conv1.bias"
    for arguments, expected in (((), averaged), (("--entry", "model"), plain)):
        target = tmp_path / f"out{len(arguments)}.pth"
        assert convert(tmp_path / "both.pth", target, *arguments).message is None
        assert torch.equal(torch.load(written(target))["state_dict"][name], expected[name])


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"state_dict": {"weight": torch.zeros(1)}}, ("FlashInternImage", "weight")),
        ({"layer4.1.conv2.weight": torch.zeros(1)}, ("FlashInternImage", "ResNet")),
        ([1, 2], ("list",)),
        (3, ("int",)),
        ({"optimizer": {"state": {}}, "epoch": 3}, ("optimizer, epoch",)),
        ({"ema_state_dict": {"x": torch.zeros(1)}}, ("'ema_state_dict'",)),
        ({"state_dict": {1: torch.zeros(1)}}, ("1",)),
    ],
)
def test_what_it_and_its_neighbors_refuse(run_tool, content, facts, tmp_path):
    """Always one line that names the file; nothing is written."""
    torch.save(content, tmp_path / "file.pth")
    for tool in ("convert.py", "convert_bev_boxes.py"):
        message = run_tool(tool, "file.pth", "out.pth", cwd=tmp_path).message
        assert str(message).startswith("error: file.pth")
        if tool == "convert.py":
            assert all(fact in message for fact in facts)
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth"]


def test_wrong_direction(convert, released, tmp_path):
    result = convert(released[0], tmp_path / "out.pth", "--to-released")
    assert "--to-released" in result.message
