"""16-bit gradients of large maps on the CPU, which are summed band by band of their rows."""

import math

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_bands_sum_as_the_float32_kernel_does(dtype, spread):
    """Its sums have the same order and type, and only one rounding more."""
    torch.manual_seed(0)
    height, width, channels, groups = 200, 150, 64, 4
    value = torch.randn(1, height, width, channels).to(dtype)
    offset_mask = torch.randn(1, height, width, 112) * spread
    offset_mask[0, 3, 4, :6] = math.nan
    offset_mask[0, 5, :3, 1] = math.inf
    offset_mask[0, 7, :9, 0] = -math.inf
    offset_mask = offset_mask.to(dtype)
    grad_output = torch.randn(1, height, width, channels).to(dtype)
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], groups, 1.0, False, False)

    def gradient(convert):
        tensors = map(convert, (grad_output, value, offset_mask))
        return torch.ops.dcnv4_mm.dcnv4_backward(*tensors, *geometry, False, True, False)[0]

    expected = gradient(torch.Tensor.float).to(dtype)
    assert torch.equal(gradient(lambda tensor: tensor), expected)
