"""DCNv4 in other networks: which modules are replaced, and what stays."""

import copy

import pytest
import torch
from torch import nn

from dcnv4_mm.layers import DCNv4Conv2d, swap_convolutions


class Block(nn.Module):
    """As in ConvNeXt: a depthwise convolution and more behind it."""

    def __init__(self, channels):
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.mlp = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.mlp(self.conv_dw(x))


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
    count = swap_convolutions(
        model, lambda name, conv: conv.kernel_size == (3, 3), group_channels=8
    )
    assert count == 1
    assert model[0].output_proj.bias is not None
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


def map_transposed_channels_last(*shape):
    return map_channels_last(shape[0], shape[1], shape[3], shape[2]).transpose(2, 3)


def map_expanded(*shape):
    return torch.randn(shape[0], 1, *shape[2:]).expand(shape)


def map_columns_of_one_row(*shape):
    return map_channels_last(shape[0], shape[1], 1, shape[3]).expand(shape)


def map_batch_inside(*shape):
    return torch.randn(*shape[2:], *shape[:2]).permute(2, 3, 0, 1)


def map_one_image(*shape):
    return torch.randn(*shape[2:], shape[1]).permute(2, 0, 1).unsqueeze(0)


MAPS = [
    map_contiguous,
    map_channels_last,
    map_sliced,
    map_sliced_channels_last,
    map_transposed_channels_last,
    map_expanded,
    map_columns_of_one_row,
    map_batch_inside,
    map_one_image,
]


@pytest.mark.parametrize("shape", [(2, 32, 5, 6), (1, 32, 1, 1), (2, 32, 5, 1), (2, 32, 1, 6)])
@pytest.mark.parametrize("make", MAPS)
@pytest.mark.parametrize("groups", [1, 32])
def test_convolutions_keep_the_memory_format(make, shape, groups):
    x = make(*shape)
    original = nn.Conv2d(32, 32, 3, padding=1, groups=groups)
    model = nn.Sequential(original)
    swap_convolutions(model, lambda name, conv: True)
    expected, output = original(x), model(x)
    assert output.stride() == expected.stride()
    if make in (map_contiguous, map_sliced):
        output.view(len(x), -1)


def test_memory_format_is_kept_in_compiled_code_and_transforms():
    layer = DCNv4Conv2d(32, 32, 3, padding=1, groups=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for make in (map_contiguous, map_channels_last):
        x = make(4, 32, 5, 6)
        assert compiled(x).stride() == layer(x).stride()
        outputs = torch.vmap(layer)(x.unflatten(0, (2, 2)))
        assert outputs.is_contiguous() == (make is map_contiguous)


def test_what_replaces_a_module_takes_its_mode_and_type():
    model = net().double().eval()
    model[0].requires_grad_(False)
    swap_convolutions(model)
    assert model(torch.randn(1, 32, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert not model[0].conv_dw.training
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[2].parameters())


class ConvWithNorm(nn.Conv2d):
    """As detectron2's, whose norm is a part of the convolution."""

    def __init__(self):
        super().__init__(32, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)

    def forward(self, x):
        return self.norm(super().forward(x))


def conv_with_mask():
    conv = nn.Conv2d(32, 32, 3, padding=1)
    conv.register_buffer("mask", torch.ones(3, 3))
    return conv


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (ConvWithNorm(), "ConvWithNorm with a forward, norm"),
        (conv_with_mask(), "Conv2d with mask"),
        (nn.LazyConv2d(32, 3, padding=1), "lazy"),
        (nn.Conv2d(32, 32, 3, padding=1, dtype=torch.complex64), "complex64"),
        (nn.Conv2d(32, 16, 3, padding=1), "32 in and 16 out"),
        (nn.Conv2d(24, 24, 3, padding=1), "multiple of group_channels = 16"),
        (nn.Conv2d(32, 32, 3), r"\(1, 1\), got .* \(0, 0\)"),
        (nn.Conv2d(32, 32, 2, padding=1), r"kernel \(2, 2\)"),
        (nn.Conv2d(32, 32, 3, padding=1, groups=4), "groups = 1, or groups = 32, got 4"),
        (nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"), "padding_mode.*'circular'"),
        (nn.ConvTranspose2d(32, 32, 3, padding=1), "ConvTranspose2d"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(conv, message):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), conv)
    with pytest.raises(ValueError, match=f"'1': .*{message}"):
        swap_convolutions(model, lambda name, conv: True)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize("padding", [(4, 2), "same"])
def test_dilation_is_kept(groups, padding):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=padding, dilation=(4, 2), groups=groups))
    swap_convolutions(model, lambda name, conv: True)
    x = torch.zeros(1, 32, 17, 17)
    x[..., 8, 8] = 1
    base = model(torch.zeros_like(x))
    rows, columns = ((model(x) - base).abs().amax((0, 1)) > 1e-6).nonzero().T
    assert rows.unique().tolist() == [4, 8, 12]
    assert columns.unique().tolist() == [6, 8, 10]


def test_a_shared_convolution_stays_shared():
    shared = nn.Conv2d(32, 32, 3, padding=1)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared), "c": shared})
    assert swap_convolutions(model, lambda name, conv: True) == 1
    assert isinstance(model["c"], DCNv4Conv2d)
    assert model["a"][0] is model["b"][0] is model["c"]


def test_what_a_replaced_convolution_would_lose_is_refused():
    model = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(2)))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"\['0', '1'\] have a parameter in common"):
        swap_convolutions(model, lambda name, conv: name == "1")
    model[1].weight = nn.Parameter(model[0].weight.detach().clone())
    for register in ("register_forward_hook", "register_full_backward_hook"):
        hook = getattr(model[1], register)(lambda *arguments: None)
        with pytest.raises(ValueError, match="'1' has hooks"):
            swap_convolutions(model, lambda name, conv: True)
        hook.remove()
    model[1].forward = lambda x: x
    with pytest.raises(ValueError, match="'1' has a forward"):
        swap_convolutions(model, lambda name, conv: True)
    del model[1].forward
    nn.utils.parametrizations.spectral_norm(model[1])
    with pytest.raises(ValueError, match="'1' has parametrizations"):
        swap_convolutions(model, lambda name, conv: True)
    nn.utils.parametrize.remove_parametrizations(model[1], "weight")
    for held in (model[1], [model[1]], {"last": model[1]}):
        vars(model)["held"] = held
        with pytest.raises(ValueError, match="'1' is also in the attribute 'held' of ''"):
            swap_convolutions(model, lambda name, conv: True)
    del model.held
    assert all(type(module) is nn.Conv2d for module in model)
    assert swap_convolutions(model, lambda name, conv: True) == 2


def test_attributes_are_those_of_a_convolution():
    original = nn.Conv2d(32, 32, 3, stride=2, padding=1, dilation=1, groups=2)
    layer = DCNv4Conv2d(32, 32, 3, stride=2, padding=1, dilation=1, groups=2)
    for name in (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
        *("transposed", "output_padding", "padding_mode"),
    ):
        assert getattr(layer, name) == getattr(original, name), name
    # Libraries fold a norm into what has a weight.
    assert not hasattr(layer, "weight")
    x = torch.randn(2, 32, 9, 7)
    assert layer(x).shape == original(x).shape
    assert DCNv4Conv2d(32, 32, 3, bias=False).output_proj.bias is None
    assert DCNv4Conv2d(32, 32, 3, group_channels=8).groups == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_channels": 64}, "out_channels: expected in_channels = 32, got 64"),
        ({"padding_mode": "reflect"}, "'reflect'"),
        ({"group_channels": 24}, "group_channels.*in_channels = 32.*got 24"),
        ({"group_channels": 8, "groups": 4}, "group_channels.*groups = 4"),
    ],
)
def test_arguments_without_a_counterpart_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCNv4Conv2d(**{"in_channels": 32, "out_channels": 32, "kernel_size": 3, **arguments})


def test_maps_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"x: expected \(N, 32, H, W\), got \(32, 5, 5\)"):
        DCNv4Conv2d(32, 32, 3)(torch.randn(32, 5, 5))


def test_a_convolution_without_bias_stays_without():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False))
    swap_convolutions(model, lambda name, conv: True)
    assert model[0].output_proj.bias is None


@pytest.mark.parametrize("group_channels", [0, "16", 16.0, True])
def test_group_channels_are_checked(group_channels):
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1))
    with pytest.raises((TypeError, ValueError), match="group_channels"):
        swap_convolutions(model, lambda name, conv: True, group_channels=group_channels)


def test_nothing_to_replace_is_an_error():
    with pytest.raises(ValueError, match="no module inside of this Sequential"):
        swap_convolutions(nn.Sequential(nn.Conv2d(8, 8, 3)))
    with pytest.raises(ValueError, match="no module inside of this Conv2d"):
        swap_convolutions(nn.Conv2d(32, 32, 7, padding=3, groups=32))
