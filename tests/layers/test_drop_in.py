"""DCNv4 in other networks: which modules are replaced, and what stays."""

import copy

import pytest
import torch
from torch import nn

from dcnv4_mm.layers import DropPath, swap_attention, swap_convolutions
from dcnv4_mm.layers.drop_in import DCNv4Attention, DCNv4Conv2d


class Block(nn.Module):
    """As in ConvNeXt: a depthwise convolution and more behind it."""

    def __init__(self, channels):
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.mlp = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.mlp(self.conv_dw(x))


class Attention(nn.Module):
    """As in timm and mmpretrain, with what belongs to the branch."""

    def __init__(self, channels):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(0.5)
        self.out_drop = DropPath(0.5)
        self.gamma1 = nn.Linear(channels, channels, bias=False)


class Transformer(nn.Module):
    """A class token in front of patches of 8 x 8 pixels, and one attention."""

    def __init__(self, attention, channels=64):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.attention = attention

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        if getattr(self.attention, "as_pair", False):
            return self.attention(x, x, x, need_weights=False)[0]
        return self.attention(x)


def net():
    return nn.Sequential(Block(32), nn.Conv2d(32, 32, 3, padding=1), Block(32))


def test_depthwise_convolutions_become_the_lightweight_form():
    model = net()
    x = torch.randn(2, 32, 9, 10)
    shape = model(x).shape
    original = copy.deepcopy(model.state_dict())
    assert swap_convolutions(model) == 2
    layers = [m for m in model.modules() if isinstance(m, DCNv4Conv2d)]
    assert len(layers) == 2
    assert all(layer.value_proj is None and layer.groups == 2 for layer in layers)
    assert isinstance(model[1], nn.Conv2d)
    output = model(x)
    assert output.shape == shape
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    missing, unexpected = model.load_state_dict(original, strict=False)
    assert {name.rsplit(".", 2)[0] for name in missing} == {"0.conv_dw", "2.conv_dw"}
    assert {name.rsplit(".", 1)[0] for name in unexpected} == {"0.conv_dw", "2.conv_dw"}


def test_a_new_layer_is_the_mean_of_its_window():
    model = nn.Sequential(nn.Conv2d(32, 32, 7, padding=3, groups=32)).double()
    swap_convolutions(model)
    x = torch.randn(2, 32, 6, 7, dtype=torch.float64)
    mean = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
    torch.testing.assert_close(model(x), mean)
    nn.init.normal_(model[0].offset_mask.weight)
    model[0].init_weights()
    torch.testing.assert_close(model(x), mean)


def test_selected_convolutions_become_the_full_form():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.Conv2d(32, 8, 1))
    x = torch.randn(1, 32, 9, 12)
    shape = model(x).shape
    count = swap_convolutions(model, lambda name, conv: conv.kernel_size == (3, 3), group_width=8)
    assert count == 1
    assert model[0].output_proj is not None
    assert model[0].groups == 4
    assert model(x).shape == shape


def map_contiguous(*shape):
    return torch.randn(*shape)


def map_channels_last(*shape):
    return torch.randn(*shape).to(memory_format=torch.channels_last)


def map_sliced(*shape):
    return torch.randn(shape[0], shape[1], shape[2], 2 * shape[3])[..., : shape[3]]


def map_sliced_channels_last(*shape):
    return map_channels_last(shape[0], shape[1], shape[2], 2 * shape[3])[..., : shape[3]]


@pytest.mark.parametrize("shape", [(2, 32, 5, 6), (1, 32, 1, 1), (2, 32, 5, 1)])
@pytest.mark.parametrize(
    "make", [map_contiguous, map_channels_last, map_sliced, map_sliced_channels_last]
)
@pytest.mark.parametrize("groups", [1, 32])
def test_convolutions_keep_the_memory_format(make, shape, groups):
    x = make(*shape)
    original = nn.Conv2d(32, 32, 3, padding=1, groups=groups)
    model = nn.Sequential(original)
    swap_convolutions(model, lambda name, conv: True)
    expected, output = original(x), model(x)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        kept = expected.is_contiguous(memory_format=memory_format)
        assert output.is_contiguous(memory_format=memory_format) == kept
    if make in (map_contiguous, map_sliced):
        output.view(len(x), -1)


def test_memory_format_is_kept_in_compiled_code_and_transforms():
    layer = DCNv4Conv2d(32, groups=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for make in (map_contiguous, map_channels_last):
        x = make(2, 32, 5, 6)
        assert compiled(x).stride() == layer(x).stride()
        assert torch.vmap(layer)(x[:, None]).is_contiguous() == (make is map_contiguous)


def test_what_replaces_a_module_takes_its_mode_and_type():
    model = net().double().eval()
    model[0].requires_grad_(False)
    swap_convolutions(model)
    assert model(torch.randn(1, 32, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert not model[0].conv_dw.training
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[2].parameters())


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(32, 16, 3, padding=1), "32 in and 16 out"),
        (nn.Conv2d(24, 24, 3, padding=1), "multiple of group_width = 16"),
        (nn.Conv2d(32, 32, 3), "padding that keeps the size"),
        (nn.Conv2d(32, 32, 2, padding=1), "odd kernel"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(conv, message):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), conv)
    with pytest.raises(ValueError, match=f"'1' must have .*{message}"):
        swap_convolutions(model, lambda name, conv: True)
    assert type(model[0]) is nn.Conv2d


def test_nothing_to_replace_is_an_error():
    with pytest.raises(ValueError, match="no module inside of this Sequential"):
        swap_convolutions(nn.Sequential(nn.Conv2d(8, 8, 3)))
    with pytest.raises(ValueError, match="no module inside of this Conv2d"):
        swap_convolutions(nn.Conv2d(32, 32, 7, padding=3, groups=32))
    with pytest.raises(ValueError, match="no module inside of this Sequential"):
        swap_attention(nn.Sequential(nn.Linear(8, 8)), Attention, patch_size=8)


@pytest.mark.parametrize(
    "attention", [Attention(64), nn.MultiheadAttention(64, 4, batch_first=True)], ids=type
)
def test_attention(attention):
    model = Transformer(attention).eval()
    assert swap_attention(model, type(attention), patch_size=8, group_width=16) == 1
    layer = model.attention
    assert isinstance(layer, DCNv4Attention)
    nn.init.normal_(layer.offset_mask.weight, std=0.1)
    kept = {"proj_drop", "out_drop", "gamma1"} if isinstance(attention, Attention) else set()
    assert set(layer.after) == kept
    output = model(torch.randn(2, 3, 32, 48))
    assert output.shape == (2, 1 + 4 * 6, 64)
    # The class token has no place in the image: before a linear layer scale, and after.
    torch.testing.assert_close(output[:, 0], output[:, 1:].mean(1))
    output.sum().backward()
    assert layer.offset_mask.weight.grad.any()


def test_a_copy_of_a_model_knows_its_own_images():
    model = Transformer(Attention(64)).eval()
    swap_attention(model, Attention, patch_size=8)
    other = copy.deepcopy(model)
    other(torch.randn(1, 3, 16, 24))
    assert (model.attention.image_shape, other.attention.image_shape) == (None, (2, 3))
    with pytest.raises(ValueError, match="call the model that swap_attention has changed"):
        model.attention(torch.randn(1, 7, 64))


def test_attention_that_does_not_fit_is_refused():
    windows = Attention(64)
    windows.window_size = (7, 7)
    for attention in (windows, Attention(40), nn.MultiheadAttention(64, 4)):
        model = Transformer(attention)
        with pytest.raises(ValueError, match="must be self-attention over all tokens"):
            swap_attention(model, type(attention), patch_size=8)
        assert model.attention is attention
