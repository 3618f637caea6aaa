"""FreezeOffsetsHook: offsets stay at zero through real optimizer steps, masks learn."""

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine", reason="mmengine is not installed")

from dcnv4_mm.engine.hooks.freeze_offsets import freeze_offsets
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.registry import HOOKS

GROUPS, POINTS = 2, 9


def offsets_and_masks(parameter):
    """The rows of a layer's offset_mask by kind: per group 2 * K offsets, then K masks."""
    rows = parameter.detach()[: GROUPS * POINTS * 3].unflatten(0, (GROUPS, POINTS * 3))
    return rows[:, : 2 * POINTS], rows[:, 2 * POINTS :]


def test_offsets_stay_zero_and_masks_learn():
    torch.manual_seed(0)
    layer = DCNv4(8, groups=GROUPS)
    nn.init.normal_(layer.offset_mask.weight)
    nn.init.normal_(layer.offset_mask.bias)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    masks_before = [offsets_and_masks(p)[1].clone() for p in layer.offset_mask.parameters()]
    assert freeze_offsets(model) == 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.05)
    x = torch.randn(2, 5, 6, 8)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for parameter, before in zip(layer.offset_mask.parameters(), masks_before, strict=True):
        offsets, masks = offsets_and_masks(parameter)
        assert not offsets.any()
        assert (masks != before).float().mean() > 0.9


def test_without_the_hook_offsets_learn():
    torch.manual_seed(0)
    layer = DCNv4(8, groups=GROUPS)
    nn.init.normal_(layer.offset_mask.bias)
    layer(torch.randn(2, 5, 6, 8)).square().mean().backward()
    assert offsets_and_masks(layer.offset_mask.bias.grad)[0].any()


def test_a_model_without_dcnv4_is_refused():
    with pytest.raises(ValueError, match="no DCNv4 layer"):
        freeze_offsets(nn.Linear(2, 2))


def test_it_is_registered():
    assert HOOKS.get("dcnv4_mm.FreezeOffsetsHook").__name__ == "FreezeOffsetsHook"
