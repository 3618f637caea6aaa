"""Layers with ``device`` and ``dtype``, as those of torch.nn, and layers without a batch."""

import pytest
import torch

from dcnv4_mm.layers import DCNv3, DCNv4, DCNv4Conv2d, FlashDeformAttn, LN2d


def make(name, **placed):
    if name == "DCNv4":
        return DCNv4(32, groups=2, dw_kernel_size=3, center_feature_scale=True, **placed)
    if name == "DCNv3":
        return DCNv3(32, groups=2, center_feature_scale=True, **placed)
    if name == "DCNv4Conv2d":
        return DCNv4Conv2d(32, 32, 3, groups=2, **placed)
    if name == "FlashDeformAttn":
        return FlashDeformAttn(32, num_levels=1, num_heads=4, **placed)
    return LN2d(32, **placed)


NAMES = ["DCNv4", "DCNv3", "DCNv4Conv2d", "FlashDeformAttn", "LN2d"]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_created_where_and_as_asked(name):
    for device, dtype in (("meta", torch.bfloat16), ("cpu", torch.float64)):
        layer = make(name, device=device, dtype=dtype)
        for parameter in layer.parameters():
            assert parameter.device.type == device
            assert parameter.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_start_is_that_of_a_layer_in_float32(name):
    torch.manual_seed(0)
    layer = make(name, dtype=torch.float64)
    torch.manual_seed(0)
    for parameter, expected in zip(layer.parameters(), make(name).parameters(), strict=True):
        assert parameter.shape == expected.shape
        assert parameter.isfinite().all()
        # Numbers at random differ between the types.
        assert bool(parameter.any()) == bool(expected.any())
