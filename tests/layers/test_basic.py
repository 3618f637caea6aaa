"""Small layers."""

import pytest
import torch

from dcnv4_mm.layers import DropPath, LN2d


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(4000, 2, 3))
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert per_sample[:, 0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0():
    x = torch.randn(8, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_refuses_other_rates(rate):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        DropPath(rate)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_ln2d_normalises_channels_and_is_contiguous(memory_format):
    x = torch.randn(2, 16, 5, 7).to(memory_format=memory_format)
    norm = LN2d(16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    output = norm(x)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    expected = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(-1, 1, 1)
    torch.testing.assert_close(output, expected + norm.bias.view(-1, 1, 1), rtol=0, atol=1e-5)
    assert output.is_contiguous()
