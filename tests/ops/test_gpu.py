"""What only a GPU shows: streams, graphs, several devices, tensors of many gigabytes.

Numbered defects are those of the original operators, listed in docs/migration.md.
"""

import math

import pytest
import torch
from ops.bev_cross_attn import problems as bev
from ops.dcnv4 import problems as dcnv4
from ops.flash_deform_attn import problems as attention

from dcnv4_mm.ops import functional

pytestmark = pytest.mark.gpu

operators = torch.ops.dcnv4_mm


def attention_problem(packed):
    def make(dtype, **sizes):
        sizes = dict(shapes=[(60, 90), (30, 45)], queries=3001, heads=8, width=32) | sizes
        return attention.make_problem(dtypes=(dtype, dtype), packed=packed, **sizes)

    return make


def dcnv4_problem(dtype, *, size=(100, 168), groups=4, **sizes):
    return dcnv4.make_problem(size=size, groups=groups, dtype=dtype, **sizes)


def bev_problem(dtype, **sizes):
    sizes = dict(shapes=[(60, 90), (30, 45)], queries=3001, heads=8, width=32) | sizes
    return bev.make_problem(dtypes=(dtype, dtype), **sizes)


MAKE = {
    "dcnv4": dcnv4_problem,
    "ms_deform_attn": attention_problem(packed=False),
    "flash_deform_attn": attention_problem(packed=True),
    "bev_cross_attn": bev_problem,
}
SMALL = {
    "dcnv4": dict(batch=1, size=(4, 5), groups=2, width=2, spare=0),
    "ms_deform_attn": dict(shapes=[(6, 7)], queries=2, heads=2, width=2, reach=-0.2),
    "flash_deform_attn": dict(shapes=[(6, 7)], queries=2, heads=2, width=2, reach=-0.2),
    "bev_cross_attn": dict(shapes=[(6, 7)], queries=3, heads=2, width=2, reach=-0.2),
}
OPERATORS = pytest.mark.parametrize("name", MAKE)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


def forward(problem):
    return getattr(operators, f"{problem.name}_forward")(*problem.inputs())


def backward(problem, deterministic, *needs):
    function = getattr(operators, f"{problem.name}_backward")
    return function(problem.grad_output, *problem.inputs(), deterministic, *needs)


def run(problem, deterministic=True):
    return forward(problem), *backward(problem, deterministic, True, True)


@OPERATORS
@DTYPES
def test_deterministic_backward_repeats_its_bits(name, dtype):
    problem = MAKE[name](dtype).on("cuda")
    first = run(problem)
    for _ in range(10):
        assert all(map(torch.equal, run(problem), first))
        # By default, this is true of everything but the gradient of value.
        output, _, *others = run(problem, deterministic=False)
        assert torch.equal(output, first[0])
        assert all(map(torch.equal, others, first[2:]))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("size", [(100, 168), (1, 3000), (3000, 1), (61, 47)], ids=str)
@DTYPES
def test_large_maps(size, dtype, deterministic):
    dcnv4.check_against_reference(
        dcnv4_problem(dtype, size=size),
        lambda problem: tuple(r.cpu() for r in run(problem.on("cuda"), deterministic)),
    )


@OPERATORS
def test_gradcheck(name):
    problem = MAKE[name](torch.float64, **SMALL[name]).on("cuda")
    function = getattr(functional, name)
    if name == "dcnv4":
        tensors = problem.value, problem.offset_mask
        call = lambda *tensors: function(*tensors, groups=problem.groups)  # noqa: E731
    else:
        sizes = list(zip(problem.level_sizes[::2], problem.level_sizes[1::2], strict=True))
        others, inputs = {}, problem.inputs()
        tensors = inputs[:3] if name == "ms_deform_attn" else inputs[:2]
        if name == "bev_cross_attn":
            others = dict(reference_points=problem.reference_points, bev_mask=problem.bev_mask)
        if name != "ms_deform_attn":
            others["num_points"] = inputs[-1]
        call = lambda value, *points: function(value, sizes, *points, **others)  # noqa: E731
    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in tensors])


@OPERATORS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(name, dtype):
    problem = MAKE[name](dtype, **SMALL[name]).on("cuda")
    inputs = problem.inputs()
    torch.library.opcheck(getattr(operators, f"{name}_forward").default, inputs)
    arguments = problem.grad_output, *inputs, True, True, True
    torch.library.opcheck(getattr(operators, f"{name}_backward").default, arguments)


def test_compile():
    problem = dcnv4_problem(torch.float32, size=(6, 7)).on("cuda")

    def loss(value, offset_mask):
        return functional.dcnv4(value, offset_mask, groups=problem.groups).square().mean()

    tensors = problem.value.requires_grad_(), problem.offset_mask.requires_grad_()
    expected = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True)
    for actual, wanted in zip(
        torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted)


@OPERATORS
@DTYPES
def test_cuda_graph(name, dtype):
    problem = MAKE[name](dtype).on("cuda")
    expected = [result.clone() for result in run(problem)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(problem)
    for result in results:
        result.fill_(math.nan)
    graph.replay()
    assert all(map(torch.equal, results, expected))


@OPERATORS
def test_current_stream(name):
    problem = MAKE[name](torch.float32).on("cuda")
    expected = forward(problem)
    late = problem._replace(value=torch.zeros_like(problem.value))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Only on the same stream does the kernel see what is copied after a long wait.
        torch.cuda._sleep(50_000_000)
        late.value.copy_(problem.value)
        output = forward(late)
    stream.synchronize()
    assert torch.equal(output, expected)


@OPERATORS
def test_device_guard(name):
    """Defect 6: tensors on another device than the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    problem = MAKE[name](torch.float32)
    pairs = zip(run(problem.on("cuda:1")), run(problem.on("cuda:0")), strict=True)
    assert all(torch.equal(actual.cpu(), expected.cpu()) for actual, expected in pairs)
    assert torch.cuda.current_device() == 0
    mixed = problem.on("cuda:0")._replace(value=problem.value.to("cuda:1"))
    with pytest.raises(RuntimeError, match=r"device [01]"):
        forward(mixed)


BAD_ARGUMENTS = {
    "value on the CPU": dict(value=torch.zeros(2, 6, 7, 32)),
    "offset_mask on the CPU": dict(offset_mask=torch.zeros(2, 6, 7, 59)),
    "channels not divisible": dict(groups=3),
    "kernel larger than the image": dict(kernel_size=[9, 3]),
    "no stride": dict(stride=[0, 1]),
    "padding beyond 31 bits": dict(padding=[2**30, 1]),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_raise(case):
    """Defect 2: the process survives whatever the operator is called with."""
    bad = dcnv4.make_problem(dtype=torch.float32).on("cuda")._replace(**BAD_ARGUMENTS[case])
    with pytest.raises(RuntimeError):
        forward(bad)
    with pytest.raises(RuntimeError):
        backward(bad, False, True, True)


@pytest.mark.parametrize("name", ["dcnv4", "ms_deform_attn"])
def test_more_than_2_31_elements(name):
    """Defect 7: 64-bit indices over the batch."""
    batch, size, heads, width = 2**15 + 1, 8, 64, 16
    elements = batch * size * size * heads * width
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 6 * elements:
        pytest.skip("needs 13 GB of GPU memory")
    if name == "dcnv4":
        sizes, names = dict(size=(size, size), groups=heads, spare=0), ["offset_mask"]
    else:
        sizes = dict(shapes=[(size, size)], queries=3, heads=heads)
        names = ["locations", "weights"]
    last = MAKE[name](torch.float16, batch=1, width=width, **sizes).on("cuda")
    expanded = {n: getattr(last, n).expand(batch, *getattr(last, n).shape[1:]) for n in names}
    value = torch.zeros(batch, *last.value.shape[1:], dtype=torch.float16, device="cuda")
    value[-1] = last.value[0]
    output = forward(last._replace(value=value, **expanded))
    assert torch.equal(output[-1:], forward(last))
    assert not output[:-1].any()
