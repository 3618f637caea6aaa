"""DCNv3 on DCNv4's kernels, against numbers recorded from InternImage."""

import pytest
import torch
from backbones.intern_image import assert_stored
from helpers import load_arrays, load_json, normal

from dcnv4_mm.ops.functional import dcnv3

CASES = {case["name"]: case for case in load_json("internimage/op_cases")}


def inputs(case):
    """Value, offsets, mask logits and gradient of the output, float64."""
    batch, groups, points = case["N"], case["G"], case["K"]
    width = groups * case["C"]
    rows = (batch, case["H_out"], case["W_out"])

    def draw(key, shape):
        return torch.from_numpy(normal(f"{case['name']}.{key}", shape))

    offset = draw("offset", (*rows, 2 * groups * points)) * case["off_scale"]
    if case["offsets"] != "raw":
        offset = torch.zeros_like(offset) if case["offsets"] == "zero" else offset.round()
    value = draw("input", (batch, case["H"], case["W"], width))
    return (
        value,
        offset,
        draw("mask", (*rows, groups * points)),
        draw("grad_output", (*rows, width)),
    )


def geometry(case):
    return {
        "groups": case["G"],
        "kernel_size": case["k"],
        "stride": case["s"],
        "padding": case["p"],
        "dilation": case["d"],
        "offset_scale": case["osc"],
        "remove_center": bool(case["rc"]),
    }


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_those_of_the_recording(name):
    check = CASES[name]["check"]
    for tensor, key in zip(inputs(CASES[name]), ("input", "offset", "mask_logits"), strict=False):
        assert tensor.sum().item() == pytest.approx(check[f"{key}_sum"], rel=1e-12)


# float64: what InternImage's pure PyTorch version differs by is at most 3e-14 of results up to 20.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
@pytest.mark.parametrize("name", CASES)
def test_recorded_results(name, dtype, tolerance):
    case = CASES[name]
    value, offset, logits, grad_output = (tensor.to(dtype) for tensor in inputs(case))
    mask = logits.unflatten(-1, (case["G"], -1)).softmax(-1).flatten(-2)
    leaves = [tensor.requires_grad_() for tensor in (value, offset, mask)]
    output = dcnv3(*leaves, **geometry(case))
    results = (output, *torch.autograd.grad(output, leaves, grad_output))
    for key, result in zip(
        ("output", "grad_input", "grad_offset", "grad_mask"), results, strict=True
    ):
        key = f"{name}/{key}"
        assert_stored(key, result, load_arrays("internimage/op_cases")[key], tolerance)


def test_equal_masks_and_no_offsets_are_the_mean_of_the_window():
    value = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    offset = torch.zeros(1, 5, 6, 36, dtype=torch.float64)
    mask = torch.full((1, 5, 6, 18), 1 / 9, dtype=torch.float64)
    mean = torch.nn.functional.avg_pool2d(value.permute(0, 3, 1, 2), 3, stride=1, padding=1)
    output = dcnv3(value, offset, mask, groups=2)
    torch.testing.assert_close(output, mean.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("offset", "mask", "groups", "error", "message"),
    [
        ((1, 5, 6, 36), (1, 5, 6, 17), 2, ValueError, "mask: .*groups = 2.*17"),
        ((1, 5, 6, 35), (1, 5, 6, 18), 2, ValueError, r"offset: expected \(1, 5, 6, 36\), got"),
        ((1, 5, 6, 36), (1, 5, 6, 18), 0, ValueError, "groups must be at least 1, got 0"),
        ((1, 5, 6, 36), (1, 5, 6, 18), 2.0, TypeError, r"groups must be an int, got 2\.0"),
        ((1, 5, 6, 36), (1, 5, 6, 18), "2", TypeError, "groups must be an int, got '2'"),
        ((1, 5, 6, 32), (1, 5, 6, 16), 2, ValueError, r"mask: expected last dim = 18 .*got 16"),
    ],
)
def test_bad_input_is_refused(offset, mask, groups, error, message):
    with pytest.raises(error, match=message):
        dcnv3(torch.zeros(1, 5, 6, 8), torch.zeros(offset), torch.zeros(mask), groups=groups)


def test_offset_and_mask_have_one_dtype():
    value, offset = torch.zeros(1, 5, 6, 8), torch.zeros(1, 5, 6, 36)
    with pytest.raises(TypeError, match="one dtype"):
        dcnv3(value, offset, torch.zeros(1, 5, 6, 18, dtype=torch.float16), groups=2)
