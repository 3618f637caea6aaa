"""The compiled CUDA kernels against the float64 reference on the CPU."""

import math

import pytest
import torch
from bev_cross_attn_problems import (
    DTYPES,
    IDS,
    check_against_reference,
    make_problem,
    random_problem,
    run_kernels,
)

from dcnv4_mm.ops.functional import backend_info, bev_cross_attn

pytestmark = pytest.mark.gpu

operators = torch.ops.dcnv4_mm


def on_device(problem, device="cuda"):
    tensors = {k: v.to(device) for k, v in problem._asdict().items() if torch.is_tensor(v)}
    return problem._replace(**tensors)


def run(problem, deterministic=False):
    """Output, then the gradients of value and points, on the CPU."""
    return tuple(result.cpu() for result in run_kernels(on_device(problem), deterministic))


def run_deterministic(problem):
    return run(problem, deterministic=True)


RUNS = pytest.mark.parametrize("run", [run, run_deterministic])


def test_kernels_are_loaded():
    assert backend_info()["bev_cross_attn"]["cuda"] == "compiled"


@RUNS
@pytest.mark.parametrize(
    "seeds", [range(start, start + 50) for start in range(0, 200, 50)], ids=str
)
def test_random_problems(seeds, run):
    for seed in seeds:
        try:
            check_against_reference(random_problem(seed), run)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@RUNS
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_recorded_results_of_an_encoder(dtypes, run):
    """The shape of BEVFormerV2's encoder, smaller; the stage that sanitizers look at."""
    shapes = [(20, 50), (10, 25), (5, 13), (3, 7)]
    problem = make_problem(
        cameras=6,
        shapes=shapes,
        queries=401,
        heads=8,
        points=8,
        pillar=4,
        width=32,
        density=0.2,
        dtypes=dtypes,
    )
    check_against_reference(problem, run)


@RUNS
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
@pytest.mark.parametrize("width", [1, 2, 13, 24, 32, 48, 80, 129, 1100])
def test_head_widths(width, dtypes, run):
    check_against_reference(make_problem(width=width, heads=5, dtypes=dtypes), run)


@RUNS
def test_more_points_than_fit_into_shared_memory(run):
    problem = make_problem(batch=1, cameras=2, queries=3, points=2501, dtypes=DTYPES[1])
    check_against_reference(problem, run)


@RUNS
@pytest.mark.parametrize("density", [0.0, 0.3])
def test_what_no_camera_sees_is_not_read(density, run):
    problem = make_problem(cameras=4, queries=50, density=density, dtypes=DTYPES[1])
    problem.references[~problem.hits] = math.nan
    problem.offsets_logits[~problem.hits.any(1)] = math.nan
    assert not any(result.isnan().any() for result in run(problem))


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[4]], ids=str)
def test_deterministic_backward_repeats_its_bits(dtypes):
    problem = on_device(
        make_problem(shapes=[(60, 90), (30, 45)], queries=3001, heads=8, width=32, dtypes=dtypes)
    )
    first = run_kernels(problem, deterministic=True)
    for _ in range(10):
        assert all(map(torch.equal, run_kernels(problem, deterministic=True), first))
        # By default, this is true of everything but the gradient of value.
        output, _, grad_points = run_kernels(problem)
        assert torch.equal(output, first[0])
        assert torch.equal(grad_points, first[2])


def test_gradcheck():
    problem = on_device(make_problem(queries=3, width=2, reach=-0.2))
    sizes = list(zip(problem.level_sizes[::2], problem.level_sizes[1::2], strict=True))
    leaves = [problem.value.requires_grad_(), problem.offsets_logits.requires_grad_()]
    others = dict(references=problem.references, hits=problem.hits, num_points=problem.num_points)
    torch.autograd.gradcheck(
        lambda value, points: bev_cross_attn(value, sizes, points, **others), leaves
    )


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[5]], ids=str)
def test_opcheck(dtypes):
    problem = on_device(make_problem(dtypes=dtypes))
    torch.library.opcheck(operators.bev_cross_attn_forward.default, problem.inputs())
    backward = operators.bev_cross_attn_backward.default
    torch.library.opcheck(backward, (problem.grad_output, *problem.inputs(), True, True, True))


def test_cuda_graph():
    problem = on_device(make_problem(queries=301, dtypes=DTYPES[4]))
    expected = [result.clone() for result in run_kernels(problem, deterministic=True)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run_kernels(problem, deterministic=True)
    for result in results:
        result.fill_(math.nan)
    graph.replay()
    assert all(map(torch.equal, results, expected))


def test_device_guard():
    """Tensors on another device than the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    problem = make_problem(dtypes=DTYPES[1])
    expected = run_deterministic(problem)
    results = run_kernels(on_device(problem, "cuda:1"), deterministic=True)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(results, expected, strict=True))
    assert torch.cuda.current_device() == 0
    mixed = on_device(problem, "cuda:0")._replace(hits=problem.hits.to("cuda:1"))
    with pytest.raises(RuntimeError, match="bev_cross_attn: hits is on device 1"):
        operators.bev_cross_attn_forward(*mixed.inputs())


@RUNS
@pytest.mark.parametrize("sizes", [dict(batch=0), dict(queries=0)], ids=str)
def test_nothing_to_sample(sizes, run):
    output, grad_value, _ = run(make_problem(**sizes))
    assert output.numel() == 0
    assert not grad_value.any()
