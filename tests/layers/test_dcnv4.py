"""The DCNv4 layer against recorded numbers, and what it makes of its input's shape."""

import re

import pytest
import torch
from helpers import load_arrays, load_json, normal, weights

from dcnv4_mm.layers import DCNv4

CASES = {case["name"]: case for case in load_json("dcnv4_module")}
OURS = {"group": "groups", "pad": "padding"}


def build(case, dtype=torch.float64):
    """The layer of a recorded case, with its weights."""
    arguments = {OURS.get(name, name): value for name, value in case["ctor"].items()}
    layer = DCNv4(**{"groups": 4, **arguments})
    state = weights(case["state_dict"])
    layer.load_state_dict({our_name(name): tensor for name, tensor in state.items()})
    return layer.to(dtype)


def our_name(name):
    return re.sub("(center_feature_scale_proj)_", r"\1.", name)


def tensors(case, dtype=torch.float64):
    """Input and gradient of the output, (N, H * W, C)."""
    (height, width), channels = case["shape"], case["ctor"]["channels"]
    shape = (case["N"], height * width, channels)
    return [
        torch.from_numpy(normal(f"{case['name']}.{key}", shape)).float().to(dtype)
        for key in ("input", "grad_output")
    ]


def assert_recorded(key, tensor, tolerance):
    """Compares what is stored of an array: a dot product with noise, then samples."""
    flat = tensor.detach().double().flatten()
    expected = torch.from_numpy(load_arrays("dcnv4_module")[key])
    samples = flat[torch.arange(len(expected) - 1) * flat.numel() // (len(expected) - 1)]
    atol = tolerance * flat.abs().max().item()
    torch.testing.assert_close(samples, expected[1:], rtol=0, atol=atol, msg=key)
    dot = flat @ torch.from_numpy(normal(key, flat.numel()))
    assert dot.item() == pytest.approx(expected[0].item(), abs=atol * flat.numel() ** 0.5), key


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype, tolerance):
    case = CASES[name]
    layer = build(case, dtype)
    x, grad_output = tensors(case, dtype)
    x.requires_grad_()
    output = layer(x, tuple(case["shape"]) if case["shape_argument_passed"] else None)
    output.backward(grad_output)
    assert_recorded(f"{name}/output", output, tolerance)
    assert_recorded(f"{name}/grad_input", x.grad, tolerance)
    gradients = {our: parameter.grad for our, parameter in layer.named_parameters()}
    for released in case["state_dict"]:
        gradient = gradients.pop(our_name(released))
        assert_recorded(f"{name}/grad_param/{released}", gradient, tolerance)
    assert not gradients


def test_image_and_token_layouts_agree():
    layer = build(CASES["m_default"])
    x, _ = tensors(CASES["m_default"])
    tokens = layer(x, (5, 7))
    assert torch.equal(layer(x.unflatten(1, (5, 7))).flatten(1, 2), tokens)


def test_new_layer_puts_out_its_bias():
    layer = DCNv4(32, groups=2)
    torch.nn.init.normal_(layer.output_proj.bias)
    output = layer(torch.randn(2, 4, 5, 32))
    assert torch.equal(output, layer.output_proj.bias.expand_as(output))


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"stride": 2}, (5, 4)),
        ({"stride": (1, 2), "padding": (0, 1)}, (7, 4)),
        ({"padding": 2}, (11, 10)),
        ({"kernel_size": 1, "padding": 0}, (9, 8)),
        ({"kernel_size": (1, 9), "padding": (0, 4)}, (9, 8)),
    ],
)
def test_defect_2_and_3_any_geometry(arguments, size):
    """The original makes offsets for every input pixel, whatever the output's size."""
    layer = DCNv4(16, groups=1, **arguments)
    torch.nn.init.normal_(layer.offset_mask.weight)
    x = torch.randn(2, 9, 8, 16, requires_grad=True)
    output = layer(x)
    assert output.shape == (2, *size, 16)
    output.sum().backward()
    assert x.grad.isfinite().all()
    assert layer.offset_mask.weight.grad.any()


def test_strided_layer_is_a_sample_of_the_dense_one():
    torch.manual_seed(0)
    strided = DCNv4(16, groups=2, stride=2, dw_kernel_size=3, center_feature_scale=True)
    torch.nn.init.normal_(strided.offset_mask.weight)
    torch.nn.init.normal_(strided.center_feature_scale_proj.weight)
    dense = DCNv4(16, groups=2, dw_kernel_size=3, center_feature_scale=True)
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(2, 9, 8, 16)
    torch.testing.assert_close(strided(x), dense(x)[:, ::2, ::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 30, "groups": 4}, "multiple of groups"),
        ({"channels": 0, "groups": 1}, "multiple of groups"),
        ({"channels": 32, "groups": 0}, "multiple of groups"),
        ({"channels": 32, "groups": 2, "dw_kernel_size": 4}, "odd and positive"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCNv4(**arguments)


@pytest.mark.parametrize(
    ("x_shape", "shape", "message"),
    [
        ((2, 30, 32), None, "30 pixels.*shape="),
        ((2, 36, 32), (5, 7), "36 pixels"),
        ((2, 36, 16), None, "x must be"),
        ((36, 32), None, "x must be"),
    ],
)
def test_bad_input_is_refused(x_shape, shape, message):
    with pytest.raises(ValueError, match=message):
        DCNv4(32, groups=2)(torch.randn(x_shape), shape)
