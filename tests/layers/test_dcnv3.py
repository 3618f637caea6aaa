"""The DCNv3 layer against recorded numbers."""

import pytest
import torch
from backbones.intern_image import assert_stored
from helpers import load_arrays, load_json, normal, weights

from dcnv4_mm.checkpoints import convert
from dcnv4_mm.checkpoints.flash_intern_image import RULES
from dcnv4_mm.layers import DCNv3

CASES = {case["name"]: case for case in load_json("internimage/module")}
PREFIX = "levels.0.blocks.0.dcn."


def our_names(released):
    """By this package's name of a parameter of the layer, the released one."""
    converted = convert({PREFIX + name: name for name in released}, RULES)
    return {name.removeprefix(PREFIX): value for name, value in converted.items()}


def build(case, dtype=torch.float64):
    """The layer of a recorded case, with its weights."""
    arguments = dict(case["ctor"])
    arguments["groups"] = arguments.pop("group", 4)
    # The layer pads by what keeps the size, which the recorded cases all do.
    arguments.pop("pad", None)
    layer = DCNv3(**arguments)
    state = weights(case["state_dict"])
    layer.load_state_dict({our: state[name] for our, name in our_names(state).items()})
    return layer.to(dtype)


def tensors(case, dtype=torch.float64):
    """Input and gradient of the output, (N, H, W, C)."""
    shape = (case["N"], *case["shape"], case["ctor"]["channels"])
    return [
        torch.from_numpy(normal(f"{case['name']}.{key}", shape)).float().to(dtype)
        for key in ("input", "grad_output")
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype, tolerance):
    case, stored = CASES[name], load_arrays("internimage/module")
    layer = build(case, dtype)
    x, grad_output = tensors(case, dtype)
    output = layer(x.requires_grad_())
    output.backward(grad_output)
    results = {f"{name}/output": output, f"{name}/grad_input": x.grad}
    gradients = {our: parameter.grad for our, parameter in layer.named_parameters()}
    for our, released in our_names(case["state_dict"]).items():
        results[f"{name}/grad_param/{released}"] = gradients.pop(our)
    assert not gradients
    assert set(results) == {key for key in stored if key.startswith(f"{name}/")}
    for key, result in results.items():
        assert_stored(key, result, stored[key], tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    case = CASES["v3m_dw5_cfs"]
    layer = build(case, torch.float32)
    x, grad_output = tensors(case, torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        output = layer(x)
    assert output.dtype == dtype
    # A linear layer of 64 numbers in 16 bits.
    largest = expected.abs().max().item()
    assert (output - expected).abs().max().item() <= 8 * torch.finfo(dtype).eps * largest
    output.backward(grad_output.to(dtype))
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_new_layer_averages_the_projected_window():
    layer = DCNv3(8, groups=2).double()
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    value = layer.input_proj(x).permute(0, 3, 1, 2)
    mean = torch.nn.functional.avg_pool2d(value, 3, stride=1, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer.output_proj(mean))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 30, "groups": 4}, "multiple of groups"),
        ({"channels": 32, "groups": 0}, "groups must be at least 1"),
        ({"channels": 32, "groups": 2, "kernel_size": 2}, "kernel_size must be odd"),
        ({"channels": 32, "groups": 2, "dw_kernel_size": 4}, "dw_kernel_size must be odd"),
        ({"channels": 8, "groups": 2, "kernel_size": 1, "remove_center": True}, "without points"),
        ({"channels": 8, "groups": 2, "offset_scale": float("nan")}, "finite"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DCNv3(**arguments)


@pytest.mark.parametrize("shape", [(2, 36, 32), (2, 6, 6, 16)])
def test_bad_input_is_refused(shape):
    with pytest.raises(ValueError, match=r"x must be \(N, H, W, 32\)"):
        DCNv3(32, groups=2)(torch.randn(shape))
