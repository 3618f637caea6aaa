"""The DCNv4 layer against recorded numbers, and what it makes of its input's shape."""

import math
import re

import numpy as np
import pytest
import torch
from backbones.intern_image import assert_stored
from helpers import load_arrays, load_json, normal, weights

from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.functional import dcnv4

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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype, tolerance):
    case = CASES[name]
    layer = build(case, dtype)
    x, grad_output = tensors(case, dtype)
    x.requires_grad_()
    output = layer(x, tuple(case["shape"]) if case["shape_argument_passed"] else None)
    output.backward(grad_output)
    results = {f"{name}/output": output, f"{name}/grad_input": x.grad}
    gradients = {our: parameter.grad for our, parameter in layer.named_parameters()}
    for released in case["state_dict"]:
        results[f"{name}/grad_param/{released}"] = gradients.pop(our_name(released))
    assert not gradients
    for key, result in results.items():
        assert_stored(key, result, load_arrays("dcnv4_module")[key], tolerance)


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
    ("arguments", "size"),
    [
        ({"kernel_size": 2, "padding": 0}, (8, 7)),
        ({"kernel_size": 4, "padding": 1}, (8, 7)),
        ({"kernel_size": (2, 3), "padding": (1, 1)}, (10, 8)),
        ({"kernel_size": 2, "padding": 1, "dilation": 2}, (9, 8)),
        ({"kernel_size": 4, "padding": 2, "dilation": 3}, (4, 3)),
    ],
)
def test_even_kernels(arguments, size):
    """Masks of one without projections: what a convolution with weights of one gives."""
    layer = DCNv4(16, groups=1, without_pointwise=True, **arguments).double()
    points = layer.kernel_size[0] * layer.kernel_size[1]
    torch.nn.init.zeros_(layer.offset_mask.bias)
    layer.offset_mask.bias.data[2 * points : 3 * points] = 1
    x = torch.randn(2, 9, 8, 16, dtype=torch.float64)
    output = layer(x)
    assert output.shape == (2, *size, 16)
    weight = torch.ones(16, 1, *layer.kernel_size, dtype=torch.float64)
    padding, dilation = layer.padding, layer.dilation
    expected = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), weight, padding=padding, dilation=dilation, groups=16
    )
    torch.testing.assert_close(output, expected.permute(0, 2, 3, 1))


BAD_ARGUMENTS = {
    "not_divisible": ({"channels": 30, "groups": 4}, ValueError, "multiple of groups"),
    "no_channels": ({"channels": 0, "groups": 1}, ValueError, "channels must be at least 1"),
    "no_groups": ({"groups": 0}, ValueError, "groups must be at least 1"),
    "float_groups": ({"groups": 32 / 16}, TypeError, "groups must be an int, got 2.0"),
    "even_dw": ({"dw_kernel_size": 4}, ValueError, "dw_kernel_size must be odd"),
    "dw_pair": ({"dw_kernel_size": (3, 3)}, TypeError, "dw_kernel_size must be an int"),
    "no_kernel": ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
    "three_numbers": ({"kernel_size": (3, 3, 3)}, TypeError, "kernel_size .* a pair"),
    "string": ({"padding": "same"}, TypeError, "padding .*'same'"),
    "float_stride": ({"stride": 2.0}, TypeError, "stride must be an int or a pair"),
    "no_stride": ({"stride": 0}, ValueError, "stride must be at least 1"),
    "negative_padding": ({"padding": (1, -1)}, ValueError, "padding must be at least 0"),
    "no_dilation": ({"dilation": 0}, ValueError, "dilation must be at least 1"),
    "bool_dw": ({"dw_kernel_size": True}, TypeError, "dw_kernel_size must be an int, got True"),
    "bool_stride": ({"stride": (1, True)}, TypeError, "stride must be an int or a pair"),
    "set": ({"stride": {1, 2}}, TypeError, "stride must be an int or a pair"),
    "bytes": ({"kernel_size": b"33"}, TypeError, "kernel_size must be an int or a pair"),
    "bool_scale": ({"offset_scale": True}, TypeError, "offset_scale must be a number"),
    "string_flag": ({"without_pointwise": "False"}, TypeError, "without_pointwise .*'False'"),
    "int_flag": ({"center_feature_scale": 1}, TypeError, "center_feature_scale .* got 1"),
    "no_flag": ({"output_bias": None}, TypeError, "output_bias .* got None"),
    "remove_center_1": ({"remove_center": 1}, TypeError, "True or False"),
    "no_points": (
        {"kernel_size": 1, "padding": 0, "remove_center": True},
        ValueError,
        "without points",
    ),
    "nan": ({"offset_scale": math.nan}, ValueError, "finite"),
}


@pytest.mark.parametrize(
    ("arguments", "error", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        DCNv4(**{"channels": 32, "groups": 2, **arguments})


def test_numbers_of_numpy_and_torch():
    arguments = {"kernel_size": 3, "stride": 2, "padding": (1, 0), "dilation": 1}
    x = torch.randn(1, 6, 7, 32)
    layer = DCNv4(32, groups=2, **arguments)
    for convert in (np.asarray, torch.tensor, np.int64):
        given = {
            name: tuple(map(convert, number)) if isinstance(number, tuple) else convert(number)
            for name, number in arguments.items()
        }
        other = DCNv4(convert(32), groups=convert(2), **given)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x))
        rows = torch.randn(1, 3, 3, 56)
        assert torch.equal(
            dcnv4(x, rows, groups=convert(2), **given), dcnv4(x, rows, groups=2, **arguments)
        )
    assert torch.equal(layer(x.flatten(1, 2), torch.tensor([6, 7])), layer(x).flatten(1, 2))
    scales = [DCNv4(8, groups=2, offset_scale=s).offset_scale for s in (np.float64(2), 2)]
    # torch.compile takes numbers of NumPy for tensors.
    assert [type(scale) for scale in scales] == [float, float]


def test_a_kernel_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"larger than the image 2 x 7"):
        DCNv4(32, groups=2, kernel_size=7)(torch.randn(1, 2, 7, 32))


@pytest.mark.parametrize("shape", [None, (6, 7)])
def test_compiled_with_other_sizes(shape):
    layer = DCNv4(16, groups=1)
    torch.nn.init.normal_(layer.offset_mask.weight)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for scale in (1, 2):
        size = (6 * scale, 6 * scale) if shape is None else (shape[0] * scale, shape[1] * scale)
        x = torch.randn(2, size[0] * size[1], 16)
        given = None if shape is None else size
        torch.testing.assert_close(compiled(x, given), layer(x, given))


@pytest.mark.parametrize(
    ("x_shape", "shape", "message"),
    [
        ((2, 30, 32), None, "30 pixels.*shape="),
        ((2, 36, 32), (5, 7), "36 pixels"),
        ((2, 6, 6, 32), (4, 9), r"not of \(4, 9\) pixels"),
        ((2, 36, 16), None, "x must be"),
        ((36, 32), None, "x must be"),
    ],
)
def test_bad_input_is_refused(x_shape, shape, message):
    with pytest.raises(ValueError, match=message):
        DCNv4(32, groups=2)(torch.randn(x_shape), shape)
