"""The FlashDeformAttn layer against recorded numbers, and at its start."""

import math

import numpy as np
import pytest
import torch
from helpers import generator, load_arrays, load_json, normal, weights

from dcnv4_mm.layers import FlashDeformAttn
from dcnv4_mm.ops.functional import flash_deform_attn

CASES = {case["name"]: case for case in load_json("flash_deform_attn_module")}
OURS = {
    "d_model": "embed_dims",
    "n_levels": "num_levels",
    "n_heads": "num_heads",
    "n_points": "num_points",
}


def build(case, dtype, half_precision_locations=False):
    """The layer of a recorded case, with its weights: the names are the released ones."""
    arguments = {OURS[name]: value for name, value in case["ctor"].items()}
    layer = FlashDeformAttn(**arguments, half_precision_locations=half_precision_locations)
    layer.load_state_dict(weights(case["state_dict"]))
    return layer.to(dtype)


def inputs(case, dtype):
    """Arguments of the layer's forward."""
    name, batch, queries = case["name"], case["N"], case["Q"]
    pixels = sum(height * width for height, width in case["shapes"])
    channels, levels = case["ctor"]["d_model"], case["ctor"]["n_levels"]
    query = torch.from_numpy(normal(f"{name}.query", (batch, queries, channels)))
    value = torch.from_numpy(normal(f"{name}.input_flatten", (batch, pixels, channels)))
    shape = (batch, queries, levels, case["reference_dim"])
    points = torch.from_numpy(generator(f"{name}.reference_points").random(shape))
    mask = None
    if case["padding_mask"] is not None:
        mask = (torch.arange(pixels) % 3 == 0).expand(batch, pixels)
    tensors = (tensor.float().to(dtype) for tensor in (query, points, value))
    return *tensors, case["shapes"], mask


@pytest.mark.parametrize("half_precision_locations", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype, tolerance, half_precision_locations):
    layer = build(CASES[name], dtype, half_precision_locations)
    output = layer(*inputs(CASES[name], dtype)).detach()
    variants = {True: "output_fp16_locations", False: "output_exact_locations"}
    arrays = load_arrays("flash_deform_attn_module")
    expected, other = (
        torch.from_numpy(arrays[f"{name}/{variants[variant]}"])
        for variant in (half_precision_locations, not half_precision_locations)
    )
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)
    assert (output - other).abs().max() > 10 * tolerance


def test_new_layer_looks_in_all_directions():
    layer = FlashDeformAttn(64, num_levels=2, num_heads=8, num_points=3)
    offsets = layer.sampling_offsets.bias.view(8, 2, 3, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor(directions, dtype=torch.float32)[:, None, None]
    expected = expected * torch.arange(1, 4).view(1, 1, 3, 1)
    torch.testing.assert_close(offsets, expected.expand(8, 2, 3, 2), rtol=1e-6, atol=1e-6)
    for parameter in (layer.sampling_offsets.weight, *layer.attention_weights.parameters()):
        assert not parameter.any()
    bound = math.sqrt(6 / 128)
    for projection in (layer.value_proj, layer.output_proj):
        assert bound * 0.95 < projection.weight.abs().max() <= bound
        assert not projection.bias.any()


def test_padding_counts_as_zero():
    layer = build(CASES["fda_4pad"], torch.float64)
    query, points, value, shapes, mask = inputs(CASES["fda_4pad"], torch.float64)
    other = value.masked_fill(mask.unsqueeze(-1), 100.0)
    expected = layer(query, points, value, shapes, mask)
    assert torch.equal(layer(query, points, other, shapes, mask), expected)


@pytest.mark.parametrize("half_precision_locations", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_defect_10_autocast(dtype, half_precision_locations):
    """The original's locations, logits and value have types that do not fit under autocast."""
    layer = build(CASES["fda_box"], torch.float32, half_precision_locations)
    query, points, value, shapes, _ = inputs(CASES["fda_box"], torch.float32)
    query.requires_grad_()
    exact = layer(query, points, value, shapes)
    with torch.autocast("cpu", dtype=dtype):
        output = layer(query, points, value, shapes)
    assert output.dtype == dtype
    # Outputs are up to 0.44, after three linear layers in the narrow type.
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.float(), exact, rtol=0, atol=tolerance)
    output.sum().backward()
    parameters = dict(layer.named_parameters())
    for name, tensor in {"query": query, **parameters}.items():
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


def test_sizes_as_a_tensor():
    layer = build(CASES["fda_2"], torch.float32)
    query, points, value, shapes, _ = inputs(CASES["fda_2"], torch.float32)
    expected = layer(query, points, value, shapes)
    assert torch.equal(layer(query, points, value, torch.tensor(shapes)), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embed_dims": 30, "num_heads": 4}, ValueError, "embed_dims: .*num_heads = 4, got 30"),
        ({"embed_dims": 0}, ValueError, "embed_dims must be at least 1"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1"),
        ({"num_levels": -1}, ValueError, "num_levels must be at least 1"),
        ({"num_points": 0}, ValueError, "num_points must be at least 1"),
        ({"num_points": 4.0}, TypeError, r"num_points must be an int, got 4\.0"),
        ({"num_heads": "8"}, TypeError, "num_heads must be an int, got '8'"),
        ({"embed_dims": 512 / 2}, TypeError, "embed_dims must be an int"),
        ({"half_precision_locations": 1}, TypeError, "half_precision_locations .*got 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FlashDeformAttn(**arguments)


def test_numbers_of_numpy():
    arguments = {"embed_dims": 64, "num_levels": 2, "num_heads": 4, "num_points": 3}
    layer = FlashDeformAttn(**{name: np.int64(number) for name, number in arguments.items()})
    assert {name: getattr(layer, name) for name in arguments} == arguments
    assert all(type(getattr(layer, name)) is int for name in arguments)
    query, value = torch.randn(1, 5, 64), torch.randn(1, 20, 64)
    points, shapes = torch.rand(1, 5, 2, 2), [(4, 4), (2, 2)]
    assert layer(query, points, value, shapes).shape == (1, 5, 64)
    rows = torch.rand(1, 5, 4, 18)
    heads = value.unflatten(-1, (4, 16))
    assert torch.equal(
        flash_deform_attn(heads, shapes, rows, num_points=np.int64(3)),
        flash_deform_attn(heads, shapes, rows, num_points=3),
    )
    with pytest.raises(TypeError, match=r"num_points must be an int, got 3\.0"):
        flash_deform_attn(heads, shapes, rows, num_points=3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(2, 5, 32)}, r"query must be \(N, length, 64\)"),
        ({"value": torch.zeros(39, 64)}, r"value must be \(N, length, 64\)"),
        ({"value": torch.zeros(2, 38, 64)}, "39 rows, got 38"),
        ({"reference_points": torch.zeros(2, 5, 3, 2)}, r"must be \(2, 5, 2\) points"),
        ({"reference_points": torch.zeros(2, 5, 2, 3)}, "2 numbers .* or 4"),
        ({"padding_mask": torch.zeros(2, 38).bool()}, "padding_mask must have the shape"),
        ({"spatial_shapes": [(6, 5), (3, 3), (1, 1)]}, "must have 2 levels, got 3"),
    ],
)
def test_bad_input_is_refused(changes, message):
    good = dict(
        query=torch.zeros(2, 5, 64),
        reference_points=torch.zeros(2, 5, 2, 2),
        value=torch.zeros(2, 39, 64),
        spatial_shapes=[(6, 5), (3, 3)],
    )
    layer = FlashDeformAttn(64, num_levels=2)
    layer(**good)
    with pytest.raises(ValueError, match=message):
        layer(**{**good, **changes})
