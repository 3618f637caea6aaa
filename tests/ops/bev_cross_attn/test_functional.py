"""The public function: differentiation, compilation, export, autocast and clear errors."""

import math

import pytest
import torch
from functorch.compile import make_boxed_func
from ops.bev_cross_attn.problems import make_problem
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dcnv4_mm.ops.bev_cross_attn.reference import bev_cross_attn_forward_reference
from dcnv4_mm.ops.functional import bev_cross_attn

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(5, 7), (3, 4)]
SIZES, POINTS = [5, 7, 3, 4], 4
OPERATORS = torch.ops.dcnv4_mm


def inputs(*, dtype=torch.float32, points_dtype=None, grad=False, **sizes):
    """All tensors; reference points that a camera does not see are NaN."""
    options = dict(shapes=SHAPES, queries=6, heads=2, points=POINTS, width=4)
    problem = make_problem(**{**options, **sizes}).to(dtype, points_dtype or dtype)
    problem.reference_points[~problem.bev_mask] = math.nan
    _, value, points, reference_points, bev_mask, *_ = problem
    return [value.requires_grad_(grad), points.requires_grad_(grad), reference_points, bev_mask]


def function(value, points, reference_points, bev_mask):
    return bev_cross_attn(value, SHAPES, points, reference_points, bev_mask, num_points=POINTS)


def gradients(tensors, output, grad_output=None):
    grad_output = torch.ones_like(output) if grad_output is None else grad_output
    return torch.autograd.grad(output, tensors[:2], grad_output)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference(dtype):
    output = function(*inputs(dtype=dtype))
    expected = bev_cross_attn_forward_reference(*inputs(dtype=torch.float64), SIZES, POINTS)
    assert output.dtype == dtype
    assert output.shape == (2, 6, 8)
    assert output.is_contiguous()
    # 16 bits round offsets of up to 6 pixels, by 3 eps at most, times values up to about 4.
    tolerance = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_points_beside_a_16_bit_value(dtype):
    tensors = inputs(dtype=dtype, points_dtype=torch.float32, grad=True)
    output = function(*tensors)
    assert output.dtype == dtype
    wide = [tensors[0].detach().float().requires_grad_(), *tensors[1:]]
    expected = function(*wide)
    # The positions are the same: nothing but the output is rounded.
    torch.testing.assert_close(output, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    grad_value, grad_points = gradients(tensors, output)
    assert (grad_value.dtype, grad_points.dtype) == (dtype, torch.float32)
    _, expected = gradients(wide, expected)
    torch.testing.assert_close(grad_points, expected, rtol=1e-4, atol=1e-4)


def test_float32_references_beside_float64():
    value, points, reference_points, bev_mask = inputs(dtype=torch.float64)
    expected = function(value, points, reference_points, bev_mask)
    # They are drawn as float32 numbers.
    assert torch.equal(function(value, points, reference_points.float(), bev_mask), expected)


def test_spatial_shapes_as_a_tensor():
    value, *others = inputs()
    expected = function(value, *others)
    for shapes in (torch.tensor(SHAPES), torch.tensor(SHAPES, dtype=torch.int32), (*SHAPES,)):
        assert torch.equal(bev_cross_attn(value, shapes, *others, num_points=POINTS), expected)


@pytest.mark.parametrize("pillar", [1, 3])
def test_gradcheck(pillar):
    value, points, *others = inputs(
        batch=1, queries=3, width=2, dtype=torch.float64, grad=True, pillar=pillar
    )
    torch.autograd.gradcheck(lambda *leaves: function(*leaves, *others), (value, points))


def test_gradient_only_where_asked():
    tensors = inputs(grad=True)
    full = gradients(tensors, function(*tensors))
    for needed in (0, 1):
        leaves = [
            tensor.detach().requires_grad_(i == needed) for i, tensor in enumerate(tensors[:2])
        ]
        function(*leaves, *tensors[2:]).sum().backward()
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (i == needed)
        assert torch.equal(leaves[needed].grad, full[needed])


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_opcheck(needs):
    arguments = (*inputs(), SIZES, POINTS)
    torch.library.opcheck(OPERATORS.bev_cross_attn_forward.default, arguments)
    backward = OPERATORS.bev_cross_attn_backward.default
    torch.library.opcheck(backward, (torch.ones(2, 6, 8), *arguments, False, *needs))


def test_compiled_graphs_hold_the_raw_operators():
    graphs = {}

    def keep(direction):
        def compiler(graph, _):
            graphs[direction] = [str(node.target) for node in graph.graph.nodes]
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    tensors = inputs(grad=True)
    output, expected = compiled(*tensors), function(*tensors)
    assert torch.equal(output, expected)
    assert all(map(torch.equal, gradients(tensors, output), gradients(tensors, expected)))
    for direction, targets in graphs.items():
        assert f"dcnv4_mm.bev_cross_attn_{direction}.default" in targets


class _Module(torch.nn.Module):
    def forward(self, *tensors):
        return function(*tensors)


def test_export_keeps_one_node_and_decomposes_to_aten():
    batch = torch.export.Dim("batch", min=1, max=64)
    queries = torch.export.Dim("queries", min=1, max=64)
    dynamic = ({0: batch}, {0: batch, 1: queries}, {0: batch, 2: queries}, {0: batch, 2: queries})
    program = torch.export.export(_Module(), tuple(inputs(cameras=1)), dynamic_shapes=(dynamic,))
    forward = OPERATORS.bev_cross_attn_forward.default
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert forward in targets
    portable = program.run_decompositions({forward: bev_cross_attn_forward_reference})
    assert "dcnv4_mm" not in str(portable.graph)
    others = inputs(cameras=1, batch=5, queries=4)
    for exported in (program, portable):
        actual = exported.module()(*others)
        torch.testing.assert_close(actual, function(*others), rtol=0, atol=1e-5)


class _OfMaps(torch.nn.Module):
    """The level's size follows from the maps, (B, N, H, W, G, D)."""

    def forward(self, maps, *others):
        shapes = [tuple(maps.shape[2:4])]
        return bev_cross_attn(maps.flatten(2, 3), shapes, *others, num_points=POINTS)


def test_exports_with_levels_of_any_size():
    def tensors(height, width):
        value, *others = inputs(shapes=[(height, width)])
        return value.unflatten(2, (height, width)), *others

    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        _OfMaps(), tensors(5, 7), dynamic_shapes=(free, ({}, {}, {}))
    ).module()
    for size in [(5, 7), (2, 9)]:
        assert torch.equal(program(*tensors(*size)), _OfMaps()(*tensors(*size)))


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_keeps_float32_points(compiled):
    value, points, *others = inputs(grad=True)
    module = _Module()
    if compiled:
        module = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(value, points, *others)
        half = function(value, points.bfloat16(), *others)
        other_half = function(value, points.half(), *others)
    assert output.dtype == half.dtype == other_half.dtype == torch.bfloat16
    assert torch.equal(output, function(value.bfloat16(), points, *others))
    assert torch.equal(half, function(value.bfloat16(), points.bfloat16(), *others))
    assert torch.equal(other_half, function(value.bfloat16(), points.half().float(), *others))
    output.sum().backward()
    assert value.grad.dtype == points.grad.dtype == torch.float32


def test_float64_stays_float64_under_autocast():
    tensors = inputs(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(*tensors).dtype == torch.float64


def test_tensors_that_are_not_contiguous():
    tensors = inputs(grad=True)
    output = function(*tensors)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    expected = gradients(tensors, output, grad_output)
    backwards = [
        tensor.detach().transpose(0, -1).contiguous().transpose(0, -1) for tensor in tensors
    ]
    assert not any(tensor.is_contiguous() for tensor in backwards)
    for leaf in backwards[:2]:
        leaf.requires_grad_()
    strided = function(*backwards)
    assert torch.equal(strided, output)
    results = gradients(backwards, strided, grad_output.mT.contiguous().mT)
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0), (0, 0)])
def test_nothing_to_do(batch, queries):
    tensors = inputs(batch=batch, queries=queries, grad=True)
    output = function(*tensors)
    assert output.shape == (batch, queries, 8)
    for tensor, grad in zip(tensors, gradients(tensors, output), strict=False):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_flops_of_the_hits_are_counted():
    tensors = inputs(grad=True)
    samples = tensors[3].sum().item() * 2 * 2 * POINTS * 4
    with FlopCounterMode(display=False) as counter:
        output = function(*tensors)
    assert counter.get_total_flops() == 8 * samples
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 8 * samples
    # Where there are no numbers, at most so many.
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor.detach()) for tensor in tensors]
    with mode, FlopCounterMode(display=False) as counter:
        function(*fakes)
    assert counter.get_total_flops() == 8 * tensors[3].numel() * 2 * 2 * POINTS * 4


def test_a_batch_is_its_samples():
    tensors = inputs(batch=2, queries=25 * 33)
    single = [function(*(tensor[i : i + 1] for tensor in tensors)) for i in (0, 1)]
    assert torch.equal(function(*tensors), torch.cat(single))


@pytest.mark.parametrize("width", [48, 96, 112])
def test_any_head_width(width):
    tensors = inputs(width=width, grad=True)
    output = function(*tensors)
    results = gradients(tensors, output)
    exact = inputs(width=width, dtype=torch.float64, grad=True)
    expected = function(*exact)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    for gradient, same in zip(results, gradients(exact, expected), strict=True):
        assert (gradient - same).abs().max() <= 1e-5 * same.abs().max()


_VALUE, _POINTS = torch.zeros(2, 3, 47, 2, 4), torch.zeros(2, 6, 2, 24)
_REFERENCE_POINTS, _BEV_MASK = torch.zeros(2, 3, 6, 2, 2), torch.zeros(2, 3, 6, dtype=torch.bool)

# What bev_cross_attn is called with, but for what is right: an error and part of its message.
BAD_INPUTS = {
    "value_rank": (ValueError, "five axes", dict(value=_VALUE[0])),
    "value_integer": (TypeError, "got torch.int64", dict(value=_VALUE.long())),
    "no_cameras": (ValueError, "at least one camera", dict(value=_VALUE[:, :0])),
    "no_heads": (ValueError, "at least one camera", dict(value=_VALUE[:, :, :, :0])),
    "no_channels": (ValueError, "at least one camera", dict(value=_VALUE[..., :0])),
    "pixels": (
        ValueError,
        r"\[\(5, 7\), \(3, 4\)\], 47 rows, got 46",
        dict(value=_VALUE[:, :, 1:]),
    ),
    "no_levels": (ValueError, "at least one level", dict(spatial_shapes=[])),
    "flat_shapes": (TypeError, "pair of ints", dict(spatial_shapes=[5, 7, 3, 4])),
    "points_rank": (ValueError, "must have the axes", dict(offsets_logits=_POINTS[0])),
    "points_integer": (TypeError, "got torch.int64", dict(offsets_logits=_POINTS.long())),
    "points_width": (
        ValueError,
        r"\(2, 6, 2, 24\), got",
        dict(offsets_logits=_POINTS[..., 1:]),
    ),
    "points_batch": (ValueError, r"got \(1, 6, 2, 24\)", dict(offsets_logits=_POINTS[:1])),
    "points_heads": (ValueError, r"got \(2, 6, 1, 24\)", dict(offsets_logits=_POINTS[:, :, :1])),
    "wide_points": (TypeError, "float64 beside", dict(offsets_logits=_POINTS.double())),
    "half_points": (TypeError, "float16 beside", dict(offsets_logits=_POINTS.half())),
    "no_points": (ValueError, "num_points must be at least 1", dict(num_points=0)),
    "other_points": (ValueError, r"\(2, 6, 2, 30\)", dict(num_points=5)),
    "reference_points_rank": (
        ValueError,
        "must have the axes",
        dict(reference_points=_REFERENCE_POINTS[0]),
    ),
    "reference_points_cameras": (
        ValueError,
        r"\(2, 3, 6, 2, 2\), got \(2, 2,",
        dict(reference_points=_REFERENCE_POINTS[:, :2]),
    ),
    "reference_points_queries": (
        ValueError,
        r"\(2, 3, 6, 2, 2\), got \(2, 3, 5,",
        dict(reference_points=_REFERENCE_POINTS[:, :, :5]),
    ),
    "reference_points_pairs": (
        ValueError,
        r"\(2, 3, 6, 2, 2\), got",
        dict(reference_points=_REFERENCE_POINTS[..., :1]),
    ),
    "no_pillar": (
        ValueError,
        "at least one point",
        dict(reference_points=_REFERENCE_POINTS[:, :, :, :0]),
    ),
    "half_reference_points": (
        TypeError,
        "must be float32",
        dict(reference_points=_REFERENCE_POINTS.half()),
    ),
    "wide_reference_points": (
        TypeError,
        "must be float32",
        dict(reference_points=_REFERENCE_POINTS.double()),
    ),
    "reference_points_gradient": (
        ValueError,
        "have no gradient",
        dict(reference_points=_REFERENCE_POINTS.clone().requires_grad_()),
    ),
    "bev_mask_rank": (ValueError, "must have the axes", dict(bev_mask=_BEV_MASK[0])),
    "bev_mask_cameras": (
        ValueError,
        r"\(2, 3, 6\), got \(2, 1, 6\)",
        dict(bev_mask=_BEV_MASK[:, :1]),
    ),
    "bev_mask_integer": (TypeError, "must be bool", dict(bev_mask=_BEV_MASK.byte())),
    "devices_points": (ValueError, "one device", dict(offsets_logits=_POINTS.to("meta"))),
    "devices_reference_points": (
        ValueError,
        "one device",
        dict(reference_points=_REFERENCE_POINTS.to("meta")),
    ),
    "devices_bev_mask": (ValueError, "one device", dict(bev_mask=_BEV_MASK.to("meta"))),
}


@pytest.mark.parametrize(("error", "message", "changes"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_refused(error, message, changes):
    good = dict(
        value=_VALUE,
        spatial_shapes=SHAPES,
        offsets_logits=_POINTS,
        reference_points=_REFERENCE_POINTS,
        bev_mask=_BEV_MASK,
        num_points=POINTS,
    )
    bev_cross_attn(**good)
    with pytest.raises(error, match=message):
        bev_cross_attn(**{**good, **changes})


def test_same_bits_every_time():
    def run():
        tensors = inputs(queries=300, grad=True)
        output = function(*tensors)
        return output, *gradients(tensors, output)

    assert all(map(torch.equal, run(), run()))
