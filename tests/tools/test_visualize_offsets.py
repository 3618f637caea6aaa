"""visualize_offsets.py: the points are where the operator samples, and the image shows them."""

import sys

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.ops.dcnv4.layout import offset_rows

TOOLS = ROOT / "tools" / "visualization"
CONFIG = """
model = dict(backbone=dict(type="dcnv4_mm.FlashInternImage", arch="nano"))
"""


@pytest.fixture
def offsets(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import visualize_offsets

    yield visualize_offsets
    del sys.modules["visualize_offsets"]


@pytest.fixture
def files(tmp_path):
    """An image, a config and a checkpoint."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    (tmp_path / "config.py").write_text(CONFIG)
    torch.save({"model": FlashInternImage("nano").state_dict()}, tmp_path / "nano.pth")
    return [tmp_path / name for name in ("image.png", "config.py", "nano.pth")]


def test_points_of_a_new_layer_are_the_kernels_grid(offsets):
    """Offsets start at zero: in stage 4 of a 64 x 96 image the grid is 2 x 3 pixels of 32."""
    stages = offsets.sampling_points(
        FlashInternImage("nano"), torch.zeros(1, 3, 64, 96), (0.5, 0.9)
    )
    assert len(stages) == 4
    centre, locations, masks = stages[3]
    torch.testing.assert_close(centre, torch.tensor([1.5 / 3, 1.5 / 2]))
    assert locations.shape == (16 * 9, 2)
    steps = (locations.unflatten(0, (16, 9)) - centre) * torch.tensor([3, 2])
    # The points run over columns first.
    expected = torch.tensor([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]).float()
    torch.testing.assert_close(steps, expected.expand(16, 9, 2))
    assert not masks.any()


def test_offsets_move_the_points(offsets):
    backbone = FlashInternImage("nano")
    layer = backbone.levels[0].blocks[-1].dcn
    layer.offset_scale = 2.0
    # Every offset is (1, 0.5): biases alternate x and y.
    rows = offset_rows(layer.groups, 9)
    layer.offset_mask.bias.data[rows] = torch.tensor([1.0, 0.5]).repeat(len(rows) // 2)
    image = torch.zeros(1, 3, 64, 96)
    (centre, locations, _), *_ = offsets.sampling_points(backbone, image, (0.0, 0.0))
    torch.testing.assert_close(centre, torch.tensor([0.5 / 24, 0.5 / 16]))
    middle = locations.unflatten(0, (layer.groups, 9))[:, 4] - centre
    torch.testing.assert_close(middle, torch.tensor([2 / 24, 1 / 16]).expand(layer.groups, 2))


def test_image_shows_every_stage(run_tool, files, tmp_path):
    result = run_tool(
        "visualize_offsets.py", *files, "--at", 0.25, 0.75, "--out", "out.png", cwd=tmp_path
    )
    assert result.message is None
    shown = cv2.imread(str(tmp_path / "out.png"))
    # Four times as large, so that the points can be distinguished.
    image = cv2.resize(cv2.imread(str(files[0])), (384, 256), interpolation=cv2.INTER_CUBIC)
    assert shown.shape == (256, 4 * 384, 3)
    for stage in range(4):
        panel = shown[:, stage * 384 : (stage + 1) * 384]
        changed = (panel != image).any(-1)
        assert 0 < changed.sum() < changed.size / 2


def test_receptive_fields_are_the_gradients(offsets):
    """Their maximum is the norm of finite differences; far outside they are zero."""
    torch.manual_seed(0)
    backbone = FlashInternImage("nano").eval().double()
    image = torch.randn(1, 3, 64, 96).double()
    fields = offsets.receptive_fields(backbone, image, (0.5, 0.5))
    assert [field.shape for field in fields] == 4 * [(64, 96)]
    first = fields[0]
    row, column = divmod(int(first.argmax()), 96)
    assert abs(row - 32) <= 8
    assert abs(column - 48) <= 8
    assert not first[:8].any()
    # Each stage sees more than the one before it.
    shares = [(field > 0).float().mean().item() for field in fields]
    assert shares == sorted(shares)
    squares = 0
    for color in range(3):
        moved = image.clone()
        moved[0, color, row, column] += 1e-6
        difference = backbone(moved)[0][0, :, 8, 12] - backbone(image)[0][0, :, 8, 12]
        squares += (difference / 1e-6).square().sum().item()
    # Four random directions estimate the square to within a third or so.
    assert first.max().item() ** 2 == pytest.approx(squares, rel=1)


def test_receptive_fields_are_a_second_row(run_tool, files, tmp_path):
    result = run_tool(
        "visualize_offsets.py", *files, "--receptive-field", "--out", "out.png", cwd=tmp_path
    )
    assert result.message is None
    assert cv2.imread(str(tmp_path / "out.png")).shape == (2 * 256, 4 * 384, 3)


def test_bad_input(run_tool, files, tmp_path):
    _, config, checkpoint = files

    def refusal(*arguments):
        return str(run_tool("visualize_offsets.py", *arguments, cwd=tmp_path).message)

    assert "nope.png does not exist" in refusal("nope.png", config, checkpoint)
    assert "config.py is damaged" in refusal(config, config, checkpoint)
    assert "--out" in refusal(*files, "--out", "nowhere/out.png")
    assert refusal(*files, "--at", 2, 0) == "2"
    config.write_text('model = dict(backbone=dict(type="ResNet"))')
    assert "has the backbone ResNet" in refusal(*files)
    config.write_text("model = None")
    assert "has no model.backbone" in refusal(*files)
