"""The kernels of BEV cross-attention against the float64 reference, for every backend."""

import math

import pytest
import torch
from ops.backends import BACKENDS, CPU, CUDA, DEVICES, HOST, over, pairwise
from ops.bev_cross_attn.problems import (
    DTYPES,
    IDS,
    check_against_reference,
    make_problem,
    random_case,
    run_reference,
)
from ops.measures import peak_of, results_by_threads

from dcnv4_mm.ops.functional import backend_info


@over(*CPU, "cuda_default")
def test_kernels_are_loaded(backend):
    serving = backend_info()["bev_cross_attn"][backend.kind]
    assert serving == ("compiled" if backend.kind == "cuda" else f"compiled for {backend.detail}")


@pytest.mark.parametrize("seeds", [range(start, start + 10) for start in (0, 10, 20)], ids=str)
def test_random_problems(seeds, backend):
    for seed in seeds:
        try:
            check_against_reference(random_case(seed), backend.run)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@over(*CUDA)
@pytest.mark.parametrize("dtypes", DTYPES, ids=IDS)
def test_recorded_results_of_an_encoder(dtypes, backend):
    """The shape of BEVFormerV2's encoder, smaller; sanitizers run what has this name."""
    problem = make_problem(
        cameras=6,
        shapes=[(20, 50), (10, 25), (5, 13), (3, 7)],
        queries=401,
        heads=8,
        points=8,
        pillar=4,
        width=32,
        density=0.2,
        dtypes=dtypes,
    )
    check_against_reference(problem, backend.run)


@pytest.mark.parametrize("device", DEVICES)
def test_random_problems_on_every_device_on_host(hosts, device):
    default, deterministic = hosts[:2]
    default.host_device = deterministic.host_device = device
    for seed in range(100, 104):
        check_against_reference(random_case(seed), default.run, deterministic.run)


WIDTHS = [1, 2, 3, 13, 17, 24, 32, 48, 80, 100, 129, 1100]


@pairwise(backend=BACKENDS, width=WIDTHS, dtypes=DTYPES, heads=[2, 5])
def test_head_widths(width, dtypes, heads, backend):
    """A head's vectors need not be a power of two."""
    problem = make_problem(
        width=width, heads=heads, queries=5, cameras=2, points=2, batch=1, dtypes=dtypes
    )
    check_against_reference(problem, backend.run)


@pairwise(
    backend=BACKENDS,
    cameras=[1, 2, 6, 9],
    counts=[(1, 1, 1), (1, 17, 3), (3, 5, 2), (4, 2, 4)],
    dtypes=DTYPES,
)
def test_any_number_of_cameras_levels_points_and_pillars(cameras, counts, dtypes, backend):
    levels, points, pillar = counts
    problem = make_problem(
        cameras=cameras,
        shapes=[(level + 1, 2 * level + 1) for level in range(levels)],
        points=points,
        pillar=pillar,
        queries=7,
        width=5,
        dtypes=dtypes,
    )
    check_against_reference(problem, backend.run)


@pairwise(backend=BACKENDS, dtypes=[DTYPES[1], DTYPES[4]])
def test_several_blocks_of_ragged_hits(dtypes, backend):
    """No block may mix two samples. A camera sees neighbouring queries, as in a BEV."""
    problem = make_problem(
        queries=301, cameras=4, heads=3, points=2, width=32, density=0.0, dtypes=dtypes
    )
    for camera in range(4):
        # Neighbours share a stretch; the last fifth is seen by none.
        problem.bev_mask[:, camera, 60 * camera : 60 * camera + 75] = True
    check_against_reference(problem, backend.run)


def test_more_points_than_fit_into_shared_memory(backend):
    problem = make_problem(batch=1, cameras=1, queries=2, points=350, width=4, density=1.0)
    check_against_reference(problem, backend.run)


def test_positions_are_rounded_as_in_the_reference(backend):
    # At whole coordinates the derivative jumps: one rounding less, as in a fused multiply-add, and
    # some points are on the other side. 0.7 * 5 is 3.5, but less if it is not rounded.
    problem = make_problem(shapes=[(5, 5)], dtypes=DTYPES[1])
    problem.reference_points[:] = 0.7
    problem.points()[0][:] = 0.0
    check_against_reference(problem, backend.run)


@pairwise(backend=BACKENDS, density=[0.0, 0.1, 1.0], dtypes=DTYPES)
def test_what_no_camera_sees_is_not_read(dtypes, density, backend):
    problem = make_problem(cameras=4, queries=20, points=2, density=density, dtypes=dtypes)
    expected = backend.run(problem)
    problem.reference_points[~problem.bev_mask] = math.nan
    unseen = ~problem.bev_mask.any(1)
    assert unseen.any() == (density < 1)
    problem.offsets_logits[unseen] = math.nan
    results = backend.run(problem)
    for actual, wanted in zip(results, expected, strict=True):
        # In the order of atomic additions the last bits may differ.
        torch.testing.assert_close(actual, wanted, rtol=0.01, atol=0.01)
        assert not actual.isnan().any()
        assert torch.equal(actual, wanted) or not backend.repeats_its_bits
    assert not results[0][unseen].any()
    assert not results[2][unseen].any()


@pairwise(backend=BACKENDS, dtypes=DTYPES, logits=[math.inf, -math.inf, math.nan])
def test_logits_that_are_not_finite(logits, dtypes, backend):
    """As torch's softmax: -Inf has no share, unless all logits are; +Inf and NaN spoil the head."""
    problem = make_problem(density=1.0, reach=-0.3, dtypes=dtypes)
    numbers = problem.points()[1]
    numbers[:, :, 1, 0, 1] = -math.inf
    check_against_reference(problem, backend.run)
    numbers[0, 0, 0, 0, 1] = logits
    numbers[0, 1, 0] = -math.inf
    expected = run_reference(problem.to(*DTYPES[0]))
    for actual, wanted in zip(backend.run(problem), expected, strict=True):
        assert torch.equal(actual.isnan(), wanted.isnan())
    assert expected[0][0, 1, :16].isnan().all()


@pairwise(
    backend=BACKENDS,
    dtypes=DTYPES,
    position=[math.nan, math.inf, -math.inf, 1e30, -1e30],
    point=[0, 1],
)
def test_points_outside_count_for_nothing(point, position, dtypes, backend):
    problem = make_problem(pillar=2, dtypes=dtypes)
    problem.reference_points[..., point, 0] = position
    check_against_reference(problem, backend.run)
    results = backend.run(problem)
    assert all(result.isfinite().all() for result in results)
    # Every second point goes out from there: no gradient by its offset.
    grad_offsets = problem._replace(offsets_logits=results[2]).points()[0]
    assert not grad_offsets[..., point::2, :].any()
    assert grad_offsets[..., 1 - point :: 2, :].any()


@pairwise(backend=CPU, dtypes=DTYPES)
def test_queries_may_be_in_any_order(dtypes, backend):
    # The kernels take them by where they look; a bit that changes would show through.
    problem = make_problem(cameras=3, queries=300, density=0.4, dtypes=dtypes)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = problem._replace(
        offsets_logits=problem.offsets_logits[:, order],
        reference_points=problem.reference_points[:, :, order],
        bev_mask=problem.bev_mask[:, :, order],
        grad_output=problem.grad_output[:, order],
    )
    output, _, grad_points = backend.run(problem)
    shuffled_output, _, shuffled_grad_points = backend.run(shuffled)
    assert torch.equal(shuffled_output, output[:, order])
    assert torch.equal(shuffled_grad_points, grad_points[:, order])


def in_slice(tensor):
    return torch.cat([tensor, tensor], dim=-1)[..., 1 : 1 + tensor.shape[-1]].copy_(tensor)


def in_more_rows(tensor):
    return torch.cat([tensor, tensor], dim=2)[:, :, : tensor.shape[2]]


def last_axis_first(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def every_second_sample(tensor):
    return tensor.repeat_interleave(2, dim=0)[::2]


LAYOUTS = [in_slice, in_more_rows, last_axis_first, every_second_sample]


@pairwise(backend=BACKENDS, layout=LAYOUTS, dtypes=[DTYPES[1], DTYPES[5]])
def test_any_strides(layout, dtypes, backend):
    problem = make_problem(dtypes=dtypes).on(backend.device)
    strided = [layout(x) if isinstance(x, torch.Tensor) else x for x in problem.inputs()]
    # A gradient has three axes.
    grad_output = problem.grad_output.transpose(0, 1).contiguous().transpose(0, 1)
    results = backend.run(type(problem)(grad_output, *strided))
    check_against_reference(problem.on("cpu"), lambda _: results)
    if backend.kind == "cpu":
        assert all(map(torch.equal, results, backend.run(problem)))


@pairwise(backend=BACKENDS, width=[16, 12, 6, 5])
def test_any_alignment(width, backend):
    """Loads are as wide as all heads of all cameras allow."""
    check_against_reference(make_problem(width=width, dtypes=DTYPES[2]), backend.run)
    # A single pixel per camera: how far apart cameras are counts.
    problem = make_problem(batch=1, shapes=[(1, 1)], heads=1, width=width, dtypes=DTYPES[2])
    check_against_reference(problem, backend.run)


def test_expanded_tensors(backend):
    problem = make_problem()
    expanded = problem._replace(
        grad_output=torch.ones(()).double().expand(problem.grad_output.shape),
        value=problem.value[:1, :1, :1].expand(problem.value.shape),
        offsets_logits=problem.offsets_logits[:, :1].expand(problem.offsets_logits.shape),
        reference_points=problem.reference_points[:, :1].expand(problem.reference_points.shape),
        bev_mask=problem.bev_mask[:1].expand(problem.bev_mask.shape),
    )
    check_against_reference(expanded, backend.run)


@pairwise(backend=[*CPU, *HOST], dtypes=[DTYPES[1], DTYPES[4]])
def test_same_bits_each_time(dtypes, backend):
    """On the host, in any order of blocks and threads, and on every device."""
    problem = make_problem(shapes=[(13, 9), (5, 6)], heads=3, points=2, dtypes=dtypes)
    first = backend.run(problem)
    for device in (None,) if backend.kind == "cpu" else (*DEVICES, "tiny"):
        backend.host_device = device
        output, grad_value, grad_points = backend.run(problem)
        assert torch.equal(output, first[0])
        assert torch.equal(grad_value, first[1]) or not backend.repeats_its_bits
        assert torch.equal(grad_points, first[2])


def test_only_the_gradients_that_are_needed(backend):
    problem = make_problem(dtypes=DTYPES[0]).on(backend.device)
    expected = backend.backward(problem)
    for needs in ((True, False), (False, True), (False, False)):
        gradients = backend.backward(problem, *needs)
        for gradient, wanted, needed in zip(gradients, expected, needs, strict=True):
            # In the order of atomic additions the last bits may differ.
            torch.testing.assert_close(gradient, wanted if needed else wanted.new_empty(0))


@pairwise(backend=BACKENDS, sizes=[dict(batch=0), dict(queries=0)])
def test_nothing_to_sample(sizes, backend):
    """Without queries the gradient of value is zero."""
    problem = make_problem(**sizes)
    output, grad_value, _ = backend.run(problem)
    assert output.numel() == 0
    assert grad_value.shape == problem.value.shape
    assert not grad_value.any()


@pairwise(backend=CPU, dtypes=[DTYPES[1], DTYPES[3]], sizes=[(1, 1, 1), (2, 3, 2)])
def test_same_bits_for_any_number_of_threads(sizes, dtypes, backend):
    # Large enough for several bands of pixels, which end inside of levels.
    batch, cameras, heads = sizes
    problem = make_problem(
        batch=batch,
        cameras=cameras,
        heads=heads,
        shapes=[(30, 41), (15, 21), (8, 11)],
        queries=1000,
        dtypes=dtypes,
    )
    first, *others = results_by_threads(lambda: backend.run(problem))
    for result in others:
        assert all(map(torch.equal, result, first))


@over(*CPU)
def test_sums_of_16_bits_in_several_bands(backend):
    # The float32 sums of one head, 90 * 120 * 128 * 4 bytes, are more than one band takes.
    problem = make_problem(
        batch=1,
        cameras=2,
        heads=1,
        width=128,
        shapes=[(90, 120), (3, 4)],
        points=2,
        queries=300,
        dtypes=DTYPES[5],
    )
    check_against_reference(problem, backend.run)


@over("cpu_default")
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
def test_memory(dtypes, backend):
    """No more than inputs and outputs, and one head's float32 sums per thread for 16 bits."""
    problem = make_problem(
        batch=1,
        cameras=4,
        shapes=[(50, 50), (25, 25)],
        queries=4000,
        heads=8,
        width=32,
        dtypes=dtypes,
    )
    backend.run(make_problem(dtypes=dtypes))
    sums = torch.get_num_threads() * 3125 * 32 * 4 if dtypes[0].itemsize == 2 else 0
    for function, extra in ((backend.forward, 0), (backend.backward, sums)):
        used, written = peak_of(function, problem)
        assert used <= 1.1 * written + extra
