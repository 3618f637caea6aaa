"""The public functions: differentiation, compilation, export and autocast."""

import math

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from dcnv4_mm.ops.flash_deform_attn.layout import num_pixels, pack, read_spatial_shapes
from dcnv4_mm.ops.flash_deform_attn.reference import (
    flash_deform_attn_forward_reference,
    ms_deform_attn_forward_reference,
)
from dcnv4_mm.ops.functional import flash_deform_attn, ms_deform_attn

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(5, 7), (3, 4)]
SIZES = [5, 7, 3, 4]
HEADS, POINTS = 2, 3
FUNCTIONS = {
    "flash_deform_attn": lambda value, *points: flash_deform_attn(
        value, SHAPES, *points, num_points=POINTS
    ),
    "ms_deform_attn": lambda value, *points: ms_deform_attn(value, SHAPES, *points),
}
REFERENCES = {
    "flash_deform_attn": flash_deform_attn_forward_reference,
    "ms_deform_attn": ms_deform_attn_forward_reference,
}


def inputs(
    name, *, batch=2, queries=6, dtype=torch.float32, points_dtype=None, grad=False, shapes=SHAPES
):
    """Value and points, locations going a little over the border."""
    generator = torch.Generator().manual_seed(0)
    pixels = num_pixels(read_spatial_shapes(shapes))
    value = torch.randn(batch, pixels, HEADS, 4, generator=generator)
    shape = (batch, queries, HEADS, len(shapes), POINTS)
    locations = 1.2 * torch.rand(*shape, 2, generator=generator) - 0.1
    numbers = torch.randn(shape, generator=generator)
    points = [pack(locations, numbers)] if name == "flash_deform_attn" else [locations, numbers]
    points = [tensor.to(points_dtype or dtype) for tensor in points]
    return [tensor.requires_grad_(grad) for tensor in (value.to(dtype), *points)]


def geometry(name):
    return (SIZES, POINTS) if name == "flash_deform_attn" else (SIZES,)


def operator(name, direction):
    return getattr(torch.ops.dcnv4_mm, f"{name}_{direction}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_reference(name, dtype):
    output = FUNCTIONS[name](*inputs(name, dtype=dtype))
    expected = REFERENCES[name](*inputs(name, dtype=torch.float64), *geometry(name))
    assert output.dtype == dtype
    assert output.shape == (2, 6, 8)
    assert output.is_contiguous()
    # 16 bits round locations in [0, 1]: by eps * 7 pixels at most, times values up to about 4.
    tolerance = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_points_beside_a_16_bit_value(name, dtype):
    value, *points = inputs(name, dtype=dtype, points_dtype=torch.float32, grad=True)
    output = FUNCTIONS[name](value, *points)
    assert output.dtype == dtype
    wide = [tensor.detach().requires_grad_() for tensor in (value.float(), *points)]
    expected = FUNCTIONS[name](*wide)
    # The locations are the same: nothing but the output is rounded.
    torch.testing.assert_close(output, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    gradients = torch.autograd.grad(output.sum(), (value, *points))
    expected = torch.autograd.grad(expected.sum(), wide)
    assert [gradient.dtype for gradient in gradients] == [dtype] + [torch.float32] * len(points)
    for gradient, exact in zip(gradients[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-4)


def test_one_float32_tensor_makes_both_float32():
    value, locations, weights = inputs("ms_deform_attn", dtype=torch.float16)
    mixed = ms_deform_attn(value, SHAPES, locations.float(), weights)
    assert torch.equal(mixed, ms_deform_attn(value, SHAPES, locations.float(), weights.float()))


def test_spatial_shapes_as_a_tensor():
    value, points = inputs("flash_deform_attn")
    expected = flash_deform_attn(value, SHAPES, points, num_points=POINTS)
    for shapes in (torch.tensor(SHAPES), torch.tensor(SHAPES, dtype=torch.int32), (*SHAPES,)):
        assert torch.equal(flash_deform_attn(value, shapes, points, num_points=POINTS), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name):
    tensors = inputs(name, batch=1, queries=2, dtype=torch.float64, grad=True)
    torch.autograd.gradcheck(FUNCTIONS[name], tensors)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_only_where_asked(name):
    tensors = inputs(name, grad=True)
    full = torch.autograd.grad(FUNCTIONS[name](*tensors).sum(), tensors)
    for needed in range(len(tensors)):
        leaves = [tensor.detach().requires_grad_(i == needed) for i, tensor in enumerate(tensors)]
        FUNCTIONS[name](*leaves).sum().backward()
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is not None) == (i == needed)
        assert torch.equal(leaves[needed].grad, full[needed])


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_opcheck(name, needs):
    grad_output = torch.ones(2, 6, 8)
    for overload, sizes in (("default", SIZES), ("tensor", torch.tensor(SHAPES))):
        arguments = (*inputs(name), sizes, *geometry(name)[1:])
        torch.library.opcheck(getattr(operator(name, "forward"), overload), arguments)
        backward = getattr(operator(name, "backward"), overload)
        torch.library.opcheck(backward, (grad_output, *arguments, False, *needs))


def assert_equal_with_gradients(output, expected, tensors):
    assert torch.equal(output, expected)
    for gradient, eager in zip(
        torch.autograd.grad(output.sum(), tensors),
        torch.autograd.grad(expected.sum(), tensors),
        strict=True,
    ):
        assert torch.equal(gradient, eager)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_graphs_hold_the_raw_operators(name):
    graphs = {}

    def keep(direction):
        def compiler(graph, _):
            graphs[direction] = [str(node.target) for node in graph.graph.nodes]
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend=backend)
    tensors = inputs(name, grad=True)
    assert_equal_with_gradients(compiled(*tensors), FUNCTIONS[name](*tensors), tensors)
    for direction, targets in graphs.items():
        assert f"dcnv4_mm.{name}_{direction}.default" in targets


def attend(name, shapes, tensors):
    number = {"num_points": POINTS} if name == "flash_deform_attn" else {}
    function = flash_deform_attn if number else ms_deform_attn
    return function(tensors[0], shapes, *tensors[1:], **number)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_graph_reads_the_sizes_from_a_tensor_when_it_runs(name):
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for shapes in (SHAPES, SHAPES[::-1]):
        tensors = inputs(name, grad=True)
        output = compiled(name, torch.tensor(shapes), tensors)
        assert_equal_with_gradients(output, attend(name, shapes, tensors), tensors)
    with pytest.raises((ValueError, RuntimeError), match=r"pixels|rows"):
        compiled(name, torch.tensor([(5, 7), (4, 4)]), inputs(name))
    with pytest.raises((TypeError, RuntimeError), match="integer tensor"):
        compiled(name, torch.tensor(SHAPES) / 1, inputs(name))
    # It reads the device's memory.
    assert torch.Tag.cudagraph_unsafe in operator(name, "forward").tensor.tags


class _Module(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.function = FUNCTIONS[name]

    def forward(self, *tensors):
        return self.function(*tensors)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_export_keeps_one_node_and_decomposes_to_aten(name):
    batch = torch.export.Dim("batch", min=1, max=64)
    queries = torch.export.Dim("queries", min=1, max=64)
    tensors = inputs(name)
    dynamic = [{0: batch}] + [{0: batch, 1: queries}] * (len(tensors) - 1)
    program = torch.export.export(_Module(name), tuple(tensors), dynamic_shapes=(tuple(dynamic),))
    forward = operator(name, "forward").default
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [forward]

    portable = program.run_decompositions({forward: REFERENCES[name]})
    assert "dcnv4_mm" not in str(portable.graph)
    others = inputs(name, batch=5, queries=4)
    for exported in (program, portable):
        torch.testing.assert_close(
            exported.module()(*others), FUNCTIONS[name](*others), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_keeps_float32_points(name, compiled):
    value, *points = inputs(name, grad=True)
    function = _Module(name)
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = function(value, *points)
        half = FUNCTIONS[name](value, *(tensor.bfloat16() for tensor in points))
        other_half = FUNCTIONS[name](value, *(tensor.half() for tensor in points))
    assert output.dtype == half.dtype == other_half.dtype == torch.bfloat16
    assert torch.equal(output, FUNCTIONS[name](value.bfloat16(), *points))
    rounded = [tensor.bfloat16() for tensor in points]
    assert torch.equal(half, FUNCTIONS[name](value.bfloat16(), *rounded))
    rounded = [tensor.half().float() for tensor in points]
    assert torch.equal(other_half, FUNCTIONS[name](value.bfloat16(), *rounded))
    output.sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in (value, *points))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_stays_float64_under_autocast(name):
    tensors = inputs(name, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(FUNCTIONS[name](*tensors), FUNCTIONS[name](*tensors))
        assert FUNCTIONS[name](*tensors).dtype == torch.float64


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_that_are_not_contiguous(name):
    tensors = inputs(name, grad=True)
    output = FUNCTIONS[name](*tensors)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(output, tensors, grad_output)
    backwards = [
        tensor.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
        for tensor in tensors
    ]
    assert not any(tensor.is_contiguous() for tensor in backwards)
    strided = FUNCTIONS[name](*backwards)
    assert torch.equal(strided, output)
    gradients = torch.autograd.grad(strided, backwards, grad_output.mT.contiguous().mT)
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize(("batch", "queries"), [(0, 6), (2, 0), (0, 0)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_to_do(name, batch, queries):
    tensors = inputs(name, batch=batch, queries=queries, grad=True)
    output = FUNCTIONS[name](*tensors)
    assert output.shape == (batch, queries, 8)
    output.sum().backward()
    for tensor in tensors:
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_flops_are_counted(name):
    tensors = inputs(name, grad=True)
    samples = 2 * 6 * 2 * POINTS * HEADS * 4
    with FlopCounterMode(display=False) as counter:
        output = FUNCTIONS[name](*tensors)
    assert counter.get_total_flops() == 8 * samples
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 8 * samples


# The original's defects, by their number in docs/migration.md.


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defect_1_images_of_a_batch_are_independent(name):
    # An odd number of queries and an even batch: a block of the original held two images.
    tensors = inputs(name, batch=2, queries=25 * 33)
    single = [FUNCTIONS[name](*(tensor[i : i + 1] for tensor in tensors)) for i in (0, 1)]
    assert torch.equal(FUNCTIONS[name](*tensors), torch.cat(single))


@pytest.mark.parametrize("dtype", DTYPES)
def test_defect_14_points_outside_do_not_poison_the_logits(dtype):
    """The original reads the gradient of their weight, which it has never written."""
    value, points = inputs("flash_deform_attn", dtype=dtype)
    points[..., 0::4] += 2  # some x coordinates, among them those of the first points
    points[..., 1] = math.nan
    points.requires_grad_()
    output = flash_deform_attn(value, SHAPES, points, num_points=POINTS)
    (gradient,) = torch.autograd.grad(output, points, torch.ones_like(output))
    assert gradient.isfinite().all()
    # One head's shares sum to one, so that the gradients of its logits sum to nothing.
    logits = gradient[..., 12:].double()
    assert logits.abs().max() > 0.05
    assert logits.sum(-1).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("width", [48, 96, 112])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_defects_15_and_16_any_group_width(name, width):
    """The original lacks a barrier, or has one inside a branch, unless 32 threads hold a group."""
    _, *points = inputs(name, grad=True)
    value = torch.randn(2, 47, HEADS, width, generator=torch.Generator().manual_seed(1))
    value.requires_grad_()
    output = FUNCTIONS[name](value, *points)
    gradients = torch.autograd.grad(output.square().sum(), (value, *points))
    exact = [tensor.detach().double().requires_grad_() for tensor in (value, *points)]
    expected = FUNCTIONS[name](*exact)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5)
    expected = torch.autograd.grad(expected.square().sum(), exact)
    for gradient, same in zip(gradients, expected, strict=True):
        assert (gradient - same).abs().max() <= 1e-5 * same.abs().max()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits_every_time(name):
    def run():
        tensors = inputs(name, queries=300, grad=True)
        output = FUNCTIONS[name](*tensors)
        return output, *torch.autograd.grad(output.square().sum(), tensors)

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
