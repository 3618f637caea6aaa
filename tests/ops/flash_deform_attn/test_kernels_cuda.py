"""The compiled CUDA kernels against the float64 reference on the CPU."""

import math

import pytest
import torch
from flash_deform_attn_problems import (
    DTYPES,
    GOLDEN_CASES,
    IDS,
    check_against_reference,
    check_golden,
    golden_inputs,
    make_problem,
    random_problem,
    run_kernels,
)

from dcnv4_mm.ops.flash_deform_attn.layout import read_spatial_shapes
from dcnv4_mm.ops.functional import backend_info, flash_deform_attn, ms_deform_attn

pytestmark = pytest.mark.gpu

operators = torch.ops.dcnv4_mm


def on_device(problem, device="cuda"):
    names = ("grad_output", "value", "locations", "weights")
    return problem._replace(**{name: getattr(problem, name).to(device) for name in names})


def run(problem, deterministic=False, device="cuda"):
    """Output, then the gradients of value and points, on the CPU."""
    results = run_kernels(on_device(problem, device), deterministic)
    return tuple(result.cpu() for result in results)


def run_deterministic(problem):
    return run(problem, deterministic=True)


def check(problem, run):
    check_against_reference(problem, run, one_sum=True)


RUNS = pytest.mark.parametrize("run", [run, run_deterministic])
PACKED = pytest.mark.parametrize("packed", [False, True])


def test_kernels_are_loaded():
    for name in ("flash_deform_attn", "ms_deform_attn"):
        assert backend_info()[name]["cuda"] == "compiled"


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_recorded_results(name, dtype, deterministic):
    case = GOLDEN_CASES[name]
    value, points, grad_output = (tensor.to("cuda", dtype) for tensor in golden_inputs(case))
    inputs = value, points, read_spatial_shapes(case["shapes"]), case["P"]
    flags = deterministic, True, True
    results = (
        operators.flash_deform_attn_forward(*inputs),
        *operators.flash_deform_attn_backward(grad_output, *inputs, *flags),
    )
    check_golden(case, [result.cpu() for result in results], dtype)


@RUNS
@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 250, 50)], ids=str
)
def test_random_problems(seeds, run):
    for seed in seeds:
        try:
            check(random_problem(seed), run)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@RUNS
@PACKED
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("points", [1, 4, 8])
@pytest.mark.parametrize("levels", [1, 3, 4, 5])
def test_encoders_in_a_batch(levels, points, dtypes, packed, run):
    """Defect 1: no block may mix two images. An encoder has a query for every pixel."""
    shapes = [(25 >> level or 1, 37 >> level or 1) for level in range(levels)]
    queries = sum(height * width for height, width in shapes) | 1
    problem = make_problem(
        shapes=shapes,
        queries=queries,
        heads=8,
        points=points,
        width=32,
        dtypes=dtypes,
        packed=packed,
    )
    check(problem, run)


@RUNS
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("width", [1, 2, 13, 24, 32, 48, 80, 129, 1100])
def test_head_widths(width, dtypes, run):
    """Defects 15 and 16: a head's vectors need not be a power of two, nor fit into a warp."""
    check(make_problem(width=width, heads=5, dtypes=dtypes, packed=True), run)


@RUNS
@PACKED
def test_more_points_than_fit_into_shared_memory(packed, run):
    check(make_problem(batch=1, queries=3, points=5003, dtypes=DTYPES[1], packed=packed), run)


@RUNS
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_defect_14_points_outside_share_in_the_softmax(dtypes, run):
    problem = make_problem(packed=True, dtypes=dtypes)
    problem.locations[..., ::2, :] = 3.0
    check(problem, run)


@RUNS
@pytest.mark.parametrize("location", [math.nan, math.inf, -math.inf, 6e4, -6e4])
def test_points_outside_count_for_nothing(location, run):
    problem = make_problem(dtypes=DTYPES[1])
    problem.locations[:] = location
    assert not any(result.any() for result in run(problem))


@PACKED
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[2]], ids=str)
def test_deterministic_backward_repeats_its_bits(dtypes, packed):
    shapes = [(60, 90), (30, 45)]
    problem = make_problem(
        shapes=shapes, queries=3001, heads=8, width=32, dtypes=dtypes, packed=packed
    )
    problem = on_device(problem)
    first = run_kernels(problem, deterministic=True)
    for _ in range(10):
        assert all(map(torch.equal, run_kernels(problem, deterministic=True), first))
        # By default, this is true of everything but the gradient of value.
        output, _, *grad_points = run_kernels(problem)
        assert torch.equal(output, first[0])
        assert all(map(torch.equal, grad_points, first[2:]))


@PACKED
def test_gradcheck(packed):
    problem = on_device(make_problem(queries=2, width=2, reach=-0.2, packed=packed))
    value, *points = (tensor for tensor in problem.inputs() if torch.is_tensor(tensor))
    sizes = list(zip(problem.level_sizes[::2], problem.level_sizes[1::2], strict=True))
    tensors = [tensor.requires_grad_() for tensor in (value, *points)]
    if packed:
        count = problem.weights.shape[-1]
        assert torch.autograd.gradcheck(
            lambda value, points: flash_deform_attn(value, sizes, points, num_points=count), tensors
        )
    else:
        assert torch.autograd.gradcheck(
            lambda value, *points: ms_deform_attn(value, sizes, *points), tensors
        )


@PACKED
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[5]], ids=str)
def test_opcheck(dtypes, packed):
    problem = on_device(make_problem(dtypes=dtypes, packed=packed))
    inputs = problem.inputs()
    forward = getattr(operators, f"{problem.name}_forward")
    backward = getattr(operators, f"{problem.name}_backward")
    torch.library.opcheck(forward.default, inputs)
    torch.library.opcheck(backward.default, (problem.grad_output, *inputs, True, True, True))


@PACKED
def test_cuda_graph(packed):
    problem = on_device(make_problem(queries=301, dtypes=DTYPES[4], packed=packed))

    # The inputs are made outside of the graph.
    inputs = problem.inputs()
    forward = getattr(operators, f"{problem.name}_forward")
    backward = getattr(operators, f"{problem.name}_backward")

    def step():
        return forward(*inputs), *backward(problem.grad_output, *inputs, True, True, True)

    expected = [result.clone() for result in step()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for result in results:
        result.fill_(math.nan)
    graph.replay()
    assert all(map(torch.equal, results, expected))


def test_device_guard():
    """Tensors on another device than the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    problem = make_problem(dtypes=DTYPES[1])
    for actual, expected in zip(
        run(problem, True, device="cuda:1"), run(problem, True, device="cuda:0"), strict=True
    ):
        assert torch.equal(actual, expected)
    assert torch.cuda.current_device() == 0
    mixed = on_device(problem, "cuda:0")._replace(value=problem.value.to("cuda:1"))
    with pytest.raises(RuntimeError, match="flash_deform_attn: locations is on device 0"):
        operators.ms_deform_attn_forward(*mixed.inputs())


@RUNS
@PACKED
@pytest.mark.parametrize("sizes", [dict(batch=0), dict(queries=0)], ids=str)
def test_nothing_to_sample(sizes, packed, run):
    output, grad_value, *_ = run(make_problem(**sizes, packed=packed))
    assert output.numel() == 0
    assert not grad_value.any()


def test_too_many_levels():
    problem = on_device(make_problem(shapes=[(1, 1)] * 257, points=1, dtypes=DTYPES[1]))
    with pytest.raises(RuntimeError, match="cannot index more than 256 levels"):
        operators.ms_deform_attn_forward(*problem.inputs())


def test_more_than_2_31_elements():
    """64-bit indices over the batch."""
    batch, size, heads, width = 2**15 + 1, 8, 32, 32
    elements = batch * size * size * heads * width
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 6 * elements:
        pytest.skip("needs 13 GB of GPU memory")
    last = make_problem(
        batch=1, shapes=[(size, size)], queries=3, heads=heads, width=width, dtypes=DTYPES[2]
    )
    last = on_device(last)
    value = torch.zeros(batch, *last.value.shape[1:], dtype=torch.float16, device="cuda")
    value[-1] = last.value[0]
    points = (tensor.expand(batch, *tensor.shape[1:]) for tensor in (last.locations, last.weights))
    output = operators.ms_deform_attn_forward(value, *points, last.level_sizes)
    assert torch.equal(output[-1:], operators.ms_deform_attn_forward(*last.inputs()))
    assert not output[:-1].any()
