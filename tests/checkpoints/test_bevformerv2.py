"""Box conventions of released BEVFormerV2 checkpoints."""

import math
import runpy
import sys

import pytest
import torch
from helpers import ROOT

from dcnv4_mm.checkpoints.bevformerv2 import (
    convert_boxes,
    convert_released_boxes,
    mark_boxes,
    restore_boxes,
)

TOOL = ROOT / "tools" / "model_converters" / "convert_bev_boxes.py"
NAMES = [f"pts_bbox_head.reg_branches.{i}.4.{p}" for i in range(6) for p in ("weight", "bias")]


def checkpoint():
    torch.manual_seed(0)
    weights = {name: torch.randn(10, 4) if "weight" in name else torch.randn(10) for name in NAMES}
    weights["pts_bbox_head.reg_branches.0.2.weight"] = torch.randn(4, 4)
    return {"meta": {"epoch": 24}, "state_dict": weights}


def old_corners(code):
    """Corners of a box of mmdet3d 0.17: sizes (w, l), where yaw turns clockwise."""
    x, y, log_w, log_l, *_, sine, cosine, _, _ = code.tolist()
    yaw = math.atan2(sine, cosine)
    rotation = torch.tensor([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
    return corners((x, y), math.exp(log_w), math.exp(log_l), rotation)


def new_corners(code):
    """Corners of a box of mmdet3d 1.x: sizes (l, w), yaw counter-clockwise."""
    x, y, log_l, log_w, *_, sine, cosine, _, _ = code.tolist()
    yaw = math.atan2(sine, cosine)
    rotation = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    return corners((x, y), math.exp(log_l), math.exp(log_w), rotation)


def corners(center, along_x, along_y, rotation):
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, -1], [-1, 1]])
    local = signs * torch.tensor([along_x, along_y]) / 2
    points = local @ rotation.T + torch.tensor(center)
    return torch.tensor(sorted((round(x, 3), y) for x, y in points.tolist()))


@pytest.mark.parametrize("yaw", [0.0, 0.4, 2.0, -1.3])
def test_converted_weights_predict_the_same_box(yaw):
    """A car of 4.5 x 1.9 m that drives along ``yaw``, as the old code would encode it."""
    old_yaw = -yaw - math.pi / 2
    old = torch.tensor([5.0, -3, math.log(1.9), math.log(4.5), 0, 0.5])
    old = torch.cat((old, torch.tensor([math.sin(old_yaw), math.cos(old_yaw), 1.0, 2.0])))
    released = checkpoint()
    released["state_dict"][NAMES[1]] = old
    new = convert_boxes(released)["state_dict"][NAMES[1]]
    assert new[2:4].exp().tolist() == pytest.approx([4.5, 1.9])
    assert math.remainder(math.atan2(new[6], new[7]) - yaw, 2 * math.pi) == pytest.approx(
        0, abs=1e-6
    )
    torch.testing.assert_close(new_corners(new), old_corners(old), rtol=0, atol=2e-3)


def test_both_ways():
    released = checkpoint()
    converted = convert_boxes(released)
    assert not torch.equal(converted["state_dict"][NAMES[0]], released["state_dict"][NAMES[0]])
    restored = restore_boxes(converted)
    assert restored["meta"] == released["meta"]
    for name, tensor in released["state_dict"].items():
        assert torch.equal(restored["state_dict"][name], tensor), name
        if name not in NAMES:
            assert converted["state_dict"][name] is tensor


def test_twice_is_refused():
    with pytest.raises(ValueError, match="converted already"):
        convert_boxes(convert_boxes(checkpoint()))


@pytest.mark.parametrize("content", [{}, {"state_dict": {"conv.weight": torch.zeros(1)}}])
def test_other_files_are_refused(content):
    with pytest.raises(ValueError, match="must hold a BEVFormerV2"):
        convert_boxes(content)


@pytest.mark.parametrize(
    ("meta", "converts"),
    [
        ({"mmcv_version": "1.5.0"}, True),
        ({"mmengine_version": "0.10.7"}, False),
        # The meta of a file stripped by publish_checkpoint.py.
        ({"dataset_meta": {}}, False),
        ({"mmcv_version": "1.5.0", "box_convention": "mmdet3d 1.x"}, False),
    ],
)
def test_only_released_files_are_converted_on_loading(meta, converts):
    released = {**checkpoint(), "meta": meta}
    once = convert_released_boxes(released)
    if not converts:
        assert once is released
        return
    expected = convert_boxes(released)["state_dict"]
    assert all(torch.equal(once["state_dict"][key], expected[key]) for key in expected)
    assert convert_released_boxes(once) is once


@pytest.mark.parametrize("meta", [None, {}, {"epoch": 24}])
def test_a_file_that_says_neither_is_refused_with_both_choices(meta):
    """Loaded as it is, a released one would predict wrong boxes without a word."""
    unknown = checkpoint()
    unknown["meta"] = meta
    for content in (unknown, unknown["state_dict"]):
        with pytest.raises(ValueError, match=r"convert_bev_boxes\.py: FILE OUT .* --mark"):
            convert_released_boxes(content)
        marked = mark_boxes(content)
        assert convert_released_boxes(marked) is marked
        assert marked["state_dict"] is unknown["state_dict"]


@pytest.mark.parametrize("options", [[], ["--to-released"], ["--mark"]])
def test_the_tool(tmp_path, monkeypatch, options):
    path, target = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save(checkpoint(), path)
    monkeypatch.setattr(sys, "argv", ["convert_bev_boxes.py", str(path), str(target), *options])
    runpy.run_path(str(TOOL), run_name="__main__")
    written = torch.load(target, weights_only=True)
    change = {"--mark": mark_boxes, "--to-released": restore_boxes}.get("".join(options))
    expected = (change or convert_boxes)(checkpoint())
    assert written["meta"] == expected["meta"]
    for key, tensor in expected["state_dict"].items():
        assert torch.equal(written["state_dict"][key], tensor), key


@pytest.mark.parametrize("content", [None, [1], {"meta": {"mmcv_version": "1.5.0"}}])
def test_other_content_is_left_alone(content):
    assert convert_released_boxes(content) is content


def test_a_released_file_is_converted_by_mmengines_readers(tmp_path):
    pytest.importorskip("mmengine", reason="mmengine is not installed")
    from dcnv4_mm.engine import load_from_local

    released = {**checkpoint(), "meta": {"mmcv_version": "1.5.0"}}
    torch.save(released, tmp_path / "released.pth")
    loaded = load_from_local(str(tmp_path / "released.pth"))
    expected = convert_boxes(released)
    assert loaded["meta"] == expected["meta"]
    for key, tensor in expected["state_dict"].items():
        assert torch.equal(loaded["state_dict"][key], tensor), key
