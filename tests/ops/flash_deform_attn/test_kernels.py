"""The kernels of deformable attention against the float64 reference, for every backend.

Numbered defects are those of the original operators, listed in docs/migration.md.
"""

import math

import pytest
import torch
from ops.backends import BACKENDS, CPU, DEVICES, HOST, over, pairwise
from ops.flash_deform_attn.problems import (
    DTYPES,
    GOLDEN_CASES,
    check_against_reference,
    check_golden,
    golden_problem,
    make_problem,
    random_case,
    run_reference,
)
from ops.measures import peak_of, results_by_threads, untouched

from dcnv4_mm.ops.functional import backend_info

FLOATS = [torch.float64, torch.float32]
PACKED = [False, True]


def check(case, backend):
    # The CUDA kernels add all samples of an output to one sum.
    check_against_reference(case, backend.run, one_sum=backend.kind != "cpu")


@over(*CPU, "cuda_default")
@pytest.mark.parametrize("name", ["flash_deform_attn", "ms_deform_attn"])
def test_kernels_are_loaded(name, backend):
    """Defect 13: the original compiles with old versions of torch only."""
    serving = backend_info()[name][backend.kind]
    assert serving == ("compiled" if backend.kind == "cuda" else f"compiled for {backend.detail}")


@pairwise(backend=BACKENDS, dtype=FLOATS, name=list(GOLDEN_CASES))
def test_recorded_results(name, dtype, backend):
    case = GOLDEN_CASES[name]
    check_golden(case, backend.run(golden_problem(case, dtype)), dtype)


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in (0, 20, 40)], ids=str)
def test_random_problems(seeds, backend):
    for seed in seeds:
        try:
            check(random_case(seed), backend)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@pytest.mark.parametrize("device", DEVICES)
def test_random_problems_on_every_device_on_host(hosts, device):
    for backend in hosts[:2]:
        backend.host_device = device
        for seed in range(100, 106):
            check(random_case(seed), backend)


WIDTHS = [1, 2, 3, 4, 8, 13, 16, 17, 24, 32, 48, 64, 80, 129, 256, 1100]


@pairwise(backend=BACKENDS, width=WIDTHS, dtypes=DTYPES, packed=PACKED, heads=[1, 3, 5, 16])
def test_head_widths(width, dtypes, packed, heads, backend):
    """Defects 15 and 16: a head's vectors need not be a power of two, nor fit into a warp."""
    check(make_problem(width=width, heads=heads, queries=5, dtypes=dtypes, packed=packed), backend)


# The last has more points than a block of the CPU kernels holds.
COUNTS = [(1, 1), (1, 33), (2, 8), (3, 7), (4, 4), (5, 1), (9, 23)]


@pairwise(backend=BACKENDS, counts=COUNTS, dtypes=DTYPES, packed=PACKED)
def test_any_number_of_levels_and_points(counts, dtypes, packed, backend):
    levels, points = counts
    shapes = [(level + 1, 2 * level + 1) for level in range(levels)]
    check(make_problem(shapes=shapes, points=points, dtypes=dtypes, packed=packed), backend)


@pairwise(backend=BACKENDS, dtypes=DTYPES, packed=PACKED)
def test_encoder_in_a_batch(dtypes, packed, backend):
    """Defect 1: no block may mix two images. An encoder has a query for every pixel."""
    shapes = [(13, 11), (7, 5), (4, 3), (2, 1)]
    queries = sum(height * width for height, width in shapes) | 1
    problem = make_problem(
        shapes=shapes, queries=queries, heads=3, width=32, dtypes=dtypes, packed=packed
    )
    check(problem, backend)


@pairwise(backend=BACKENDS, packed=PACKED)
def test_more_points_than_fit_into_shared_memory(packed, backend):
    sizes = dict(batch=1, queries=2, heads=1, points=350, width=4)
    check(make_problem(**sizes, dtypes=DTYPES[1], packed=packed), backend)


@pairwise(backend=BACKENDS, dtypes=DTYPES)
def test_defect_14_points_outside_share_in_the_softmax(dtypes, backend):
    """Their gradients enter those of all logits: as zeros, whatever was in shared memory."""
    problem = make_problem(packed=True, dtypes=dtypes)
    problem.locations[..., ::2, :] = 3.0
    check(problem, backend)


@pairwise(backend=BACKENDS, dtypes=[DTYPES[2], DTYPES[3]])
def test_16_bit_gradients(dtypes, backend):
    """Defect 17: sums of many 16-bit gradients are float32 until the last one is added."""
    check(make_problem(shapes=[(2, 2)], queries=400, reach=-0.2, dtypes=dtypes), backend)


def test_locations_stay_float32_beside_16_bits(backend):
    """Rounding them to float16 would move points on a map of 300 by a tenth of a pixel."""
    check(make_problem(shapes=[(1, 300)], points=8, packed=True, dtypes=DTYPES[4]), backend)


def test_positions_are_rounded_as_in_the_reference(backend):
    # At whole coordinates the derivative jumps: one rounding less, as in a fused multiply-add,
    # and some points are on the other side. 0.7 * 5 is 3.5, but less if it is not rounded.
    problem = make_problem(shapes=[(5, 5)], dtypes=DTYPES[1])
    problem.locations[:] = 0.7
    check(problem, backend)


@pairwise(backend=BACKENDS, dtypes=DTYPES, points=[1, 3, 4, 9], scale=[1.0, 30.0, 300.0, 1e4])
def test_softmax_of_any_logits(points, dtypes, scale, backend):
    problem = make_problem(packed=True, points=points)
    check(problem._replace(weights=problem.weights * scale).to(*dtypes), backend)


@pairwise(backend=BACKENDS, dtypes=DTYPES)
def test_logits_of_minus_infinity(dtypes, backend):
    problem = make_problem(packed=True, dtypes=dtypes)
    problem.weights[:, :, :, 0, 1] = -math.inf
    check(problem, backend)


@pairwise(backend=BACKENDS, logits=[math.inf, -math.inf, math.nan])
def test_logits_that_are_not_finite(logits, backend):
    """As torch's softmax: -Inf has no share, unless all logits are; +Inf and NaN spoil the head."""
    problem = make_problem(packed=True, reach=-0.2, dtypes=DTYPES[1])
    problem.weights[0, 0, 0, 0, 1] = logits
    problem.weights[0, 1, 0] = -math.inf
    # A part of the points that a thread sums.
    problem.weights[0, 2, 0].view(-1)[::4] = -math.inf
    expected = run_reference(problem)
    for actual, wanted in zip(backend.run(problem), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert expected[0].isnan().any()
    assert not expected[0][0, 2].isnan().any()


def in_slice(tensor):
    return torch.cat([tensor, tensor], dim=-1)[..., 1 : 1 + tensor.shape[-1]].copy_(tensor)


def in_more_rows(tensor):
    return torch.cat([tensor, tensor], dim=1)[:, : tensor.shape[1]]


def heads_first(tensor):
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def last_axis_first(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def every_second_image(tensor):
    return tensor.repeat_interleave(2, dim=0)[::2]


LAYOUTS = [in_slice, in_more_rows, heads_first, last_axis_first, every_second_image]


@pairwise(backend=BACKENDS, layout=LAYOUTS, dtypes=[DTYPES[1], DTYPES[3]], packed=PACKED)
def test_any_strides(layout, dtypes, packed, backend):
    problem = make_problem(dtypes=dtypes, packed=packed).on(backend.device)
    strided = [layout(x) if isinstance(x, torch.Tensor) else x for x in problem.inputs()]

    class Strided:
        name, grad_output = problem.name, layout(problem.grad_output)

        @staticmethod
        def inputs():
            return strided

    def run(_):
        results = backend.forward(Strided), *backend.backward(Strided)
        return tuple(result.cpu() for result in results)

    cpu = backend.kind == "cpu"
    check_against_reference(problem.on("cpu"), run, one_sum=not cpu)
    if cpu:
        assert all(map(torch.equal, run(None), backend.run(problem)))


@pairwise(backend=BACKENDS, start=[0, 1, 2, 3, 4, 8])
def test_any_alignment(start, backend):
    """Loads are as wide as all heads of all pixels allow."""
    problem = make_problem(dtypes=DTYPES[2])
    wide = torch.cat([problem.value, problem.value], dim=-1)
    value = wide[..., start : start + problem.value.shape[-1]]
    check(problem._replace(value=value), backend)


def test_expanded_tensors(backend):
    problem = make_problem()
    expanded = problem._replace(
        grad_output=torch.ones(()).double().expand(problem.grad_output.shape),
        value=problem.value[:1, :1].expand(problem.value.shape),
        locations=problem.locations[:, :1].expand(problem.locations.shape),
        weights=problem.weights[:, :, :1].expand(problem.weights.shape),
    )
    check(expanded, backend)


@over(*CPU, *HOST)
def test_pitches_beyond_32_bits(backend):
    """Images that are more than 2^31 elements apart."""
    problem = make_problem(dtypes=DTYPES[2])
    strides = problem.value.stride()
    pitch = 2**31 + strides[0]
    memory = untouched(pitch + strides[0], dtype=torch.float16)
    value = memory.as_strided(problem.value.shape, (pitch, *strides[1:])).copy_(problem.value)
    cpu = backend.kind == "cpu"
    far = problem._replace(value=value)
    check_against_reference(problem, lambda _: backend.run(far), one_sum=not cpu)


@pairwise(
    backend=BACKENDS, dtypes=DTYPES, location=[math.nan, math.inf, -math.inf, 6e4, -6e4, 1e30]
)
def test_points_outside_count_for_nothing(location, dtypes, backend):
    problem = make_problem(dtypes=dtypes)
    # The second point's x, the third's y, with weights that are no numbers.
    problem.locations[..., 1, 0] = location
    problem.locations[..., 2, 1] = location
    problem.weights[..., 1] = math.nan
    problem.weights[..., 2] = math.inf
    results = backend.run(problem)

    without = problem._replace(weights=problem.weights.clone())
    without.weights[..., 1:3] = 0.0
    check_against_reference(without, lambda _: results, one_sum=backend.kind != "cpu")
    if backend.repeats_its_bits:
        assert all(map(torch.equal, results, backend.run(without)))
    assert not results[2][..., 1:3, :].any()
    assert not results[3][..., 1:3].any()


def test_points_on_the_border_count_for_nothing(backend):
    """A point at -1 or H exactly is outside, and so is what it would read."""
    problem = make_problem(shapes=[(4, 4)], reach=0.0)
    # In pixels: x * 4 - 0.5.
    problem.locations[..., 0, :] = torch.tensor([-0.125, 0.5])
    problem.locations[..., 1, :] = torch.tensor([0.5, 1.125])
    check(problem, backend)
    _, _, grad_locations, grad_weights = backend.run(problem)
    assert not grad_locations[..., :2, :].any()
    assert not grad_weights[..., :2].any()


def test_nan_weight_of_a_point_inside_propagates(backend):
    problem = make_problem(reach=-0.2, dtypes=DTYPES[1])
    problem.weights[0, 0, 0, 0, 0] = math.nan
    output, grad_value, *_ = backend.run(problem)
    assert output[0, 0, :16].isnan().all()
    assert not output[0, 0, 16:].isnan().any()
    assert grad_value.isnan().any()


def test_infinite_pixel_at_the_border(backend):
    # Half a pixel outside, one corner is 0 and one is infinite: their sum is not NaN.
    problem = make_problem(shapes=[(4, 4)], points=4)
    problem.value[:] = math.inf
    problem.weights[:] = 1.0
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    problem.locations[:] = corners
    assert backend.run(problem)[0].isinf().all()


@pairwise(backend=[*CPU, *HOST], dtypes=[DTYPES[1], DTYPES[4]], packed=PACKED)
def test_same_bits_each_time(dtypes, packed, backend):
    """On the host, in any order of blocks and threads, and on every device."""
    problem = make_problem(shapes=[(13, 9), (5, 6)], heads=3, dtypes=dtypes, packed=packed)
    first = backend.run(problem)
    for device in (None,) if backend.kind == "cpu" else (*DEVICES, "tiny"):
        backend.host_device = device
        output, grad_value, *grad_points = backend.run(problem)
        assert torch.equal(output, first[0])
        assert torch.equal(grad_value, first[1]) or not backend.repeats_its_bits
        assert all(map(torch.equal, grad_points, first[2:]))


@pairwise(backend=BACKENDS, packed=PACKED)
def test_only_the_gradients_that_are_needed(packed, backend):
    problem = make_problem(dtypes=DTYPES[0], packed=packed).on(backend.device)
    expected = backend.backward(problem)
    for needs in ((True, False), (False, True), (False, False)):
        gradients = backend.backward(problem, *needs)
        flags = needs[0], *[needs[1]] * (len(gradients) - 1)
        for gradient, wanted, needed in zip(gradients, expected, flags, strict=True):
            # In the order of atomic additions the last bits may differ.
            torch.testing.assert_close(gradient, wanted if needed else wanted.new_empty(0))


@pairwise(backend=BACKENDS, packed=PACKED, sizes=[dict(batch=0), dict(queries=0)])
def test_nothing_to_sample(sizes, packed, backend):
    """Without queries the gradient of value is zero."""
    problem = make_problem(**sizes, packed=packed)
    output, grad_value, *_ = backend.run(problem)
    assert output.numel() == 0
    assert grad_value.shape == problem.value.shape
    assert not grad_value.any()


@pairwise(
    backend=CPU,
    dtypes=[DTYPES[1], DTYPES[3]],
    packed=PACKED,
    sizes=[(1, 1, 32), (1, 2, 16), (3, 5, 8)],
)
def test_same_bits_for_any_number_of_threads(sizes, dtypes, packed, backend):
    # Large enough for several bands of pixels, which end inside of levels.
    batch, heads, width = sizes
    problem = make_problem(
        batch=batch,
        heads=heads,
        width=width,
        shapes=[(30, 41), (15, 21), (8, 11)],
        queries=1500,
        dtypes=dtypes,
        packed=packed,
    )
    first, *others = results_by_threads(lambda: backend.run(problem))
    for result in others:
        assert all(map(torch.equal, result, first))


@over(*CPU)
def test_sums_of_16_bits_in_several_bands(backend):
    # The float32 sums of one head, 90 * 120 * 128 * 4 bytes, are more than one band takes.
    problem = make_problem(batch=1, heads=1, width=128, shapes=[(90, 120), (3, 4)], queries=500)
    check(problem.to(*DTYPES[5]), backend)


@over("cpu_default")
@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[3]], ids=str)
def test_memory(dtypes, backend):
    """No more than inputs and outputs, and one head's float32 sums per thread for 16 bits."""
    problem = make_problem(
        batch=1, shapes=[(100, 100), (50, 50)], queries=12500, heads=8, width=32, dtypes=dtypes
    )
    backend.run(make_problem(dtypes=dtypes))
    sums = torch.get_num_threads() * 12500 * 32 * 4 if dtypes[0].itemsize == 2 else 0
    for function, extra in ((backend.forward, 0), (backend.backward, sums)):
        used, written = peak_of(function, problem)
        assert used <= 1.1 * written + extra
