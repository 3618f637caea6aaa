"""The public function: differentiation, compilation, export, autocast and clear errors."""

import math
import re

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from dcnv4_mm.ops.dcnv4.reference import dcnv4_forward_reference
from dcnv4_mm.ops.functional import backend_info, dcnv4

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def inputs(batch=2, size=(5, 7), groups=2, width=4, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, *size, groups * width, generator=generator).to(dtype)
    offset_mask = torch.randn(batch, *size, 8 * math.ceil(27 * groups / 8), generator=generator)
    offset_mask = offset_mask.to(dtype)
    return value.requires_grad_(grad), offset_mask.requires_grad_(grad)


def raw_arguments(dtype=torch.float32, grad=False):
    value, offset_mask = inputs(dtype=dtype, grad=grad)
    return value, offset_mask, [3, 3], [1, 1], [1, 1], [1, 1], 2, 1.0, False, False


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference(dtype):
    value, offset_mask = inputs(dtype=dtype)
    output = dcnv4(value, offset_mask, groups=2)
    expected = dcnv4_forward_reference(*raw_arguments(dtype=torch.float64))
    assert output.dtype == dtype
    assert output.is_contiguous()
    # One rounding of the inputs and one of the result, on values up to about 10.
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(remove_center, stride):
    size = 3 // stride + 1, 2 // stride + 1
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 4, 3, 4, dtype=torch.float64, generator=generator)
    offset_mask = torch.randn(1, *size, 56, dtype=torch.float64, generator=generator)
    torch.autograd.gradcheck(
        lambda *tensors: dcnv4(*tensors, groups=2, stride=stride, remove_center=remove_center),
        (value.requires_grad_(), offset_mask.requires_grad_()),
    )


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_gradient_only_where_asked(needed):
    value, offset_mask = inputs(grad=True)
    full = torch.autograd.grad(dcnv4(value, offset_mask, groups=2).sum(), (value, offset_mask))
    tensors = [value.detach(), offset_mask.detach()]
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)
    dcnv4(*tensors, groups=2).sum().backward()
    for tensor, need, gradient in zip(tensors, needed, full, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            assert torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_opcheck(needs, grad):
    arguments = raw_arguments(grad=grad)
    torch.library.opcheck(torch.ops.dcnv4_mm.dcnv4_forward.default, arguments)
    grad_output = torch.ones_like(arguments[0])
    torch.library.opcheck(
        torch.ops.dcnv4_mm.dcnv4_backward.default, (grad_output, *arguments, False, *needs)
    )


def test_compiled_graphs_hold_the_raw_operators():
    graphs = {}

    def keep(name):
        def compiler(graph, _):
            graphs[name] = [str(node.target) for node in graph.graph.nodes]
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    compiled = torch.compile(
        lambda *tensors: dcnv4(*tensors, groups=2), fullgraph=True, backend=backend
    )
    value, offset_mask = inputs(grad=True)
    output = compiled(value, offset_mask)
    gradients = torch.autograd.grad(output.sum(), (value, offset_mask))
    expected = dcnv4(value, offset_mask, groups=2)
    assert torch.equal(output, expected)
    for gradient, eager in zip(
        gradients, torch.autograd.grad(expected.sum(), (value, offset_mask)), strict=True
    ):
        assert torch.equal(gradient, eager)
    assert "dcnv4_mm.dcnv4_forward.default" in graphs["forward"]
    assert "dcnv4_mm.dcnv4_backward.default" in graphs["backward"]


class _Module(torch.nn.Module):
    def forward(self, value, offset_mask):
        return dcnv4(value, offset_mask, groups=2)


def test_export_keeps_one_node_and_decomposes_to_aten():
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(_Module(), inputs(), dynamic_shapes=({0: batch}, {0: batch}))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.dcnv4_mm.dcnv4_forward.default]

    portable = program.run_decompositions(
        {torch.ops.dcnv4_mm.dcnv4_forward.default: dcnv4_forward_reference}
    )
    assert "dcnv4_mm" not in str(portable.graph)
    other_batch = inputs(batch=5)
    for exported in (program, portable):
        torch.testing.assert_close(
            exported.module()(*other_batch), _Module()(*other_batch), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_casts_both_tensors(compiled):
    value, offset_mask = inputs(grad=True)
    function = torch.compile(_Module(), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = (function if compiled else _Module())(value, offset_mask)
        mixed = dcnv4(value, offset_mask.bfloat16(), groups=2)
    assert output.dtype == mixed.dtype == torch.bfloat16
    assert torch.equal(output, dcnv4(value.bfloat16(), offset_mask.bfloat16(), groups=2))
    output.sum().backward()
    assert value.grad.dtype == offset_mask.grad.dtype == torch.float32


def test_flops_are_counted():
    value, offset_mask = inputs(grad=True)
    samples = 2 * 5 * 7 * 8 * 9
    with FlopCounterMode(display=False) as counter:
        output = dcnv4(value, offset_mask, groups=2)
    assert counter.get_total_flops() == 8 * samples
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 8 * samples


# The original's defects, by their number in docs/migration.md.


def test_defect_1_images_of_a_batch_are_independent():
    value, offset_mask = inputs(batch=2, size=(25, 33), groups=8, width=16)
    single = [dcnv4(value[i : i + 1], offset_mask[i : i + 1], groups=8) for i in (0, 1)]
    assert torch.equal(dcnv4(value, offset_mask, groups=8), torch.cat(single))


def test_defect_2_stride():
    value, _ = inputs(size=(9, 9))
    offset_mask = torch.randn(2, 5, 5, 56, generator=torch.Generator().manual_seed(1))
    output = dcnv4(value, offset_mask, groups=2, stride=2)
    expected = dcnv4_forward_reference(
        value, offset_mask, [3, 3], [2, 2], [1, 1], [1, 1], 2, 1.0, False
    )
    assert output.shape == (2, 5, 5, 8)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 257])
def test_defect_5_any_batch(batch):
    value, offset_mask = inputs(batch=batch, size=(2, 2), grad=True)
    output = dcnv4(value, offset_mask, groups=2)
    assert output.shape == value.shape
    output.sum().backward()
    assert value.grad.shape == value.shape
    assert offset_mask.grad.shape == offset_mask.shape


def test_defect_8_same_shapes_work_in_every_dtype():
    for dtype in DTYPES:
        value, offset_mask = inputs(batch=1, size=(7, 7), groups=6, width=32, dtype=dtype)
        assert dcnv4(value, offset_mask, groups=6).isfinite().all()


def _zeros(*shape, **options):
    return torch.zeros(*shape, **options)


# Defect 3 is among these: offset_mask of the wrong size was read and written out of bounds.
BAD_INPUTS = {
    "value_rank": (ValueError, r"value.*\(5, 7, 8\)", (_zeros(5, 7, 8), _zeros(1, 5, 7, 56)), {}),
    "rows_rank": (
        ValueError,
        r"offset_mask.*\(1, 35, 56\)",
        (_zeros(1, 5, 7, 8), _zeros(1, 35, 56)),
        {},
    ),
    "integer": (
        TypeError,
        "got torch.int64",
        (_zeros(1, 5, 7, 8, dtype=torch.int64), _zeros(1, 5, 7, 56)),
        {},
    ),
    "mixed_dtypes": (
        TypeError,
        "one dtype",
        (_zeros(1, 5, 7, 8, dtype=torch.float64), _zeros(1, 5, 7, 56)),
        {},
    ),
    "mixed_devices": (
        ValueError,
        "one device",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56, device="meta")),
        {},
    ),
    "groups_do_not_divide": (
        ValueError,
        "8 channels and 3 groups",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 88)),
        {"groups": 3},
    ),
    "no_groups": (ValueError, "groups", (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)), {"groups": 0}),
    "rows_too_narrow": (ValueError, "54.*got 53", (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 53)), {}),
    "too_few_rows": (
        ValueError,
        r"\(1, 5, 7\), got \(1, 5, 6\)",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 6, 56)),
        {},
    ),
    "rows_of_another_batch": (
        ValueError,
        r"\(2, 5, 7\), got \(1, 5, 7\)",
        (_zeros(2, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {},
    ),
    "padding_needs_more_rows": (
        ValueError,
        r"\(1, 7, 9\), got \(1, 5, 7\)",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"padding": 2},
    ),
    "no_pixels": (ValueError, "at least one row", (_zeros(1, 0, 7, 8), _zeros(1, 0, 7, 56)), {}),
    "kernel_too_large": (
        ValueError,
        "larger than the image",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"kernel_size": 9},
    ),
    "kernel_size_0": (
        ValueError,
        "kernel_size must be at least 1",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"kernel_size": 0},
    ),
    "stride_0": (
        ValueError,
        "stride must be at least 1",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"stride": (1, 0)},
    ),
    "three_numbers": (
        TypeError,
        "pair",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"dilation": (1, 1, 1)},
    ),
    "no_points": (
        ValueError,
        "without points",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"kernel_size": 1, "padding": 0, "remove_center": True},
    ),
    "scale": (
        ValueError,
        "finite",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"offset_scale": math.nan},
    ),
    "nested": (
        TypeError,
        "value must be a dense tensor, got a nested one",
        (torch.nested.nested_tensor([torch.zeros(5, 7, 8)]), _zeros(1, 5, 7, 56)),
        {},
    ),
    "scale_of_tensor": (
        TypeError,
        r"offset_scale must be a number, got tensor",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"offset_scale": torch.ones((), requires_grad=True)},
    ),
    "precision": (
        ValueError,
        "'default', 'fast'",
        (_zeros(1, 5, 7, 8), _zeros(1, 5, 7, 56)),
        {"precision": "half"},
    ),
}


@pytest.mark.parametrize(
    ("error", "message", "tensors", "arguments"), BAD_INPUTS.values(), ids=BAD_INPUTS
)
def test_bad_input_is_refused(error, message, tensors, arguments):
    with pytest.raises(error, match=message):
        dcnv4(*tensors, **{"groups": 2, **arguments})


def test_backend_info_says_why_a_kernel_is_missing():
    info = backend_info()["dcnv4"]
    assert set(info) == {"cpu", "cuda"}
    if torch.version.cuda is None:
        assert re.match("reference: this torch .* without CUDA", info["cuda"])
