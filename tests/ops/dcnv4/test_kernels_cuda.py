"""The compiled CUDA kernels against the float64 reference on the CPU."""

import math

import pytest
import torch
from dcnv4_problems import (
    DTYPES,
    GOLDEN_CASES,
    LAYOUTS,
    check_against_reference,
    check_golden,
    golden_problem,
    make_problem,
    random_problem,
    relative_error,
    run_reference,
)

from dcnv4_mm.ops.functional import backend_info, dcnv4

pytestmark = pytest.mark.gpu

forward = torch.ops.dcnv4_mm.dcnv4_forward
backward = torch.ops.dcnv4_mm.dcnv4_backward


def on_device(problem, device="cuda"):
    tensors = (tensor.to(device) for tensor in problem[:3])
    return type(problem)(*tensors, *problem[3:])


def run(problem, deterministic=False, device="cuda"):
    """Output, gradient of value, gradient of offset_mask, on the CPU."""
    moved = on_device(problem, device)
    results = forward(*moved[1:]), *backward(*moved, deterministic, True, True)
    return tuple(result.cpu() for result in results)


def run_deterministic(problem):
    return run(problem, deterministic=True)


RUNS = pytest.mark.parametrize("run", [run, run_deterministic])


def test_kernels_are_loaded():
    assert backend_info()["dcnv4"]["cuda"] == "compiled"


@RUNS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_recorded_results(name, dtype, run):
    case = GOLDEN_CASES[name]
    check_golden(case, run(golden_problem(case).to(dtype)))


@RUNS
@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 250, 50)], ids=str
)
def test_random_problems(seeds, run):
    for seed in seeds:
        try:
            check_against_reference(random_problem(seed), run)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("remove_center", [False, True])
@pytest.mark.parametrize("kernel_size", [(3, 3), (5, 5)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 7), (56, 56), (61, 47)], ids=str)
def test_sweep(dtype, remove_center, kernel_size, stride, size, run):
    problem = make_problem(
        batch=3,
        size=size,
        groups=5,
        kernel_size=kernel_size,
        stride=(stride, stride),
        remove_center=remove_center,
        dtype=dtype,
    )
    check_against_reference(problem, run)


@RUNS
@pytest.mark.parametrize("size", [(100, 168), (1, 3000), (3000, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_maps_beyond_shared_memory(size, dtype, run):
    check_against_reference(make_problem(size=size, groups=4, dtype=dtype), run)


@RUNS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 6, 8, 12, 48, 80, 129, 2560])
def test_group_widths(width, dtype, run):
    check_against_reference(make_problem(width=width, dtype=dtype), run)


@pytest.mark.parametrize("size", [(6, 7), (1, 7), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(layout, size, dtype):
    problem = on_device(make_problem(size=size, dtype=dtype))
    strided = problem._replace(
        grad_output=layout(problem.grad_output),
        value=layout(problem.value),
        offset_mask=layout(problem.offset_mask),
    )
    expected = run(problem, deterministic=True)
    for actual, wanted in zip(run(strided, deterministic=True), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf, 6e4, -6e4])
def test_points_outside_count_for_nothing(offset):
    problem = make_problem(spare=0, dtype=torch.float32)
    rows = problem.offset_mask.unflatten(-1, (problem.groups, 27))
    rows[..., :18] = offset
    assert not any(result.any() for result in run(problem))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(14, 14), (100, 168)], ids=str)
def test_deterministic_backward_repeats_its_bits(size, dtype):
    problem = on_device(make_problem(batch=4, size=size, groups=8, dtype=dtype))
    first = backward(*problem, True, True, True)
    for _ in range(10):
        again = backward(*problem, True, True, True)
        assert all(map(torch.equal, again, first))


def test_default_backward_repeats_the_bits_of_offset_mask():
    problem = on_device(make_problem(batch=4, size=(100, 168), groups=8, dtype=torch.float16))
    first = backward(*problem, False, False, True)[1]
    for _ in range(10):
        assert torch.equal(backward(*problem, False, False, True)[1], first)


def test_fast_sums_of_corners():
    problem = make_problem(size=(20, 20), groups=4).to(torch.float16)
    expected = run_reference(problem.to(torch.float64))[0]
    fast = forward(*on_device(problem._replace(fast=True))[1:]).cpu()
    assert relative_error(fast, expected) <= 1.5e-3


def test_gradcheck():
    problem = on_device(make_problem(batch=1, size=(4, 5), width=2, spare=0))
    tensors = problem.value.requires_grad_(), problem.offset_mask.requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: dcnv4(*args, groups=problem.groups), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    problem = on_device(make_problem(dtype=dtype))
    torch.library.opcheck(forward, problem[1:])
    torch.library.opcheck(backward, (*problem, True, True, True))


def test_compile():
    problem = on_device(make_problem(dtype=torch.float32))

    def loss(value, offset_mask):
        return dcnv4(value, offset_mask, groups=problem.groups).square().mean()

    tensors = problem.value.requires_grad_(), problem.offset_mask.requires_grad_()
    expected = torch.autograd.grad(loss(*tensors), tensors)
    compiled = torch.compile(loss, fullgraph=True)
    for actual, wanted in zip(
        torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("size", [(14, 14), (100, 168)], ids=str)
def test_cuda_graph(size):
    problem = on_device(make_problem(size=size, groups=4, dtype=torch.float16))

    def step():
        return forward(*problem[1:]), *backward(*problem, True, True, True)

    expected = [result.clone() for result in step()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for result in results:
        result.fill_(math.nan)
    graph.replay()
    assert all(map(torch.equal, results, expected))


def test_current_stream():
    problem = on_device(make_problem(size=(56, 56), groups=4, dtype=torch.float32))
    expected = forward(*problem[1:])
    value = torch.zeros_like(problem.value)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Only on the same stream does the kernel see what is copied after a long wait.
        torch.cuda._sleep(50_000_000)
        value.copy_(problem.value)
        output = forward(value, *problem[2:])
    stream.synchronize()
    assert torch.equal(output, expected)


def test_device_guard():
    """Hazard 10: tensors on another device than the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    problem = make_problem(size=(60, 70), groups=4, dtype=torch.float32)
    for actual, expected in zip(
        run(problem, True, device="cuda:1"), run(problem, True, device="cuda:0"), strict=True
    ):
        assert torch.equal(actual, expected)
    assert torch.cuda.current_device() == 0
    mixed = on_device(problem, "cuda:0")._replace(value=problem.value.to("cuda:1"))
    with pytest.raises(RuntimeError, match="dcnv4: offset_mask is on device 0, value on device 1"):
        forward(*mixed[1:])


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
    """Hazard 6: the process survives whatever the operator is called with."""
    bad = on_device(make_problem(dtype=torch.float32))._replace(**BAD_ARGUMENTS[case])
    with pytest.raises(RuntimeError):
        forward(*bad[1:])
    with pytest.raises(RuntimeError):
        backward(*bad, False, True, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(dtype):
    problem = on_device(make_problem(batch=0, dtype=dtype))
    results = forward(*problem[1:]), *backward(*problem, False, True, True)
    for result, like in zip(results, problem[:3], strict=True):
        assert result.shape == like.shape


def test_more_than_2_31_elements():
    """Hazard 9: 64-bit indices over the batch."""
    batch, size, groups, width = 2**15 + 1, 8, 64, 16
    elements = batch * size * size * groups * width
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 6 * elements:
        pytest.skip("needs 13 GB of GPU memory")
    problem = make_problem(batch=1, size=(size, size), groups=groups, width=width, spare=0)
    last = on_device(problem.to(torch.float16))
    value = torch.zeros(batch, *last.value.shape[1:], dtype=torch.float16, device="cuda")
    offset_mask = last.offset_mask.expand(batch, -1, -1, -1)
    value[-1] = last.value[0]
    output = forward(value, offset_mask, *last[3:])
    assert torch.equal(output[-1:], forward(*last[1:]))
    assert not output[:-1].any()
