"""The kernels of DCNv4 against the float64 reference: one specification for every backend.

Numbered defects are those of the original operator, listed in docs/migration.md.
"""

import math

import pytest
import torch
from ops.backends import BACKENDS, CPU, DEVICES, HOST, over, pairwise
from ops.dcnv4.problems import (
    DTYPES,
    GOLDEN_CASES,
    LAYOUTS,
    check_against_reference,
    check_golden,
    golden_problem,
    make_problem,
    random_case,
    relative_error,
    run_reference,
)
from ops.measures import peak_of, results_by_threads, untouched

from dcnv4_mm.ops.functional import backend_info

FLOATS = [torch.float64, torch.float32]


@over(*CPU, "cuda_default")
def test_kernels_are_loaded(backend):
    serving = backend_info()["dcnv4"][backend.kind]
    assert serving == ("compiled" if backend.kind == "cuda" else f"compiled for {backend.detail}")


@pairwise(backend=BACKENDS, dtype=FLOATS, name=list(GOLDEN_CASES))
def test_recorded_results(name, dtype, backend):
    case = GOLDEN_CASES[name]
    check_golden(case, backend.run(golden_problem(case).to(dtype)))


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in (0, 20, 40)], ids=str)
def test_random_problems(seeds, backend):
    for seed in seeds:
        try:
            check_against_reference(random_case(seed), backend.run)
        except AssertionError as error:
            raise AssertionError(f"random_problem({seed}): {error}") from error


@pytest.mark.parametrize("device", DEVICES)
def test_random_problems_on_every_device_on_host(hosts, device):
    default, deterministic = hosts[:2]
    default.host_device = deterministic.host_device = device
    for seed in range(100, 106):
        check_against_reference(random_case(seed), default.run, deterministic.run)


WIDTHS = [1, 2, 3, 4, 6, 8, 12, 15, 16, 17, 32, 48, 64, 80, 129, 200, 2560]


@pairwise(backend=BACKENDS, width=WIDTHS, dtype=DTYPES)
def test_group_widths(width, dtype, backend):
    """Defects 4 and 15: widths beyond a block's threads, or that are no power of two."""
    check_against_reference(make_problem(size=(4, 5), width=width, dtype=dtype), backend.run)


# Stages of FlashInternImage: edge of the map, groups, offset scale. Widths of groups are 16.
STAGES = [(28, 8, 1.0), (14, 28, 0.5), (14, 20, 1.0), (7, 80, 2.0)]


@pairwise(backend=BACKENDS, stage=STAGES, dtype=[torch.float16, torch.float32])
def test_stages_in_batches(stage, dtype, backend):
    """Defect 1: no block may mix two images. Defect 4: stage 4 of L has 1280 channels."""
    size, groups, scale = stage
    problem = make_problem(size=(size, size), groups=groups, offset_scale=scale, dtype=dtype)
    check_against_reference(problem, backend.run)


@over("default_on_host", "deterministic_on_host", "cuda_default", "cuda_deterministic")
def test_first_stage(backend):
    problem = make_problem(batch=1, size=(56, 56), groups=4, dtype=torch.float32)
    check_against_reference(problem, backend.run)


@pairwise(backend=BACKENDS, batch=[1, 3, 257])
def test_batches(batch, backend):
    """Defect 5: any batch size."""
    problem = make_problem(batch=batch, size=(3, 3), groups=3, width=8, dtype=torch.float32)
    check_against_reference(problem, backend.run)


@pairwise(
    backend=BACKENDS,
    kernel_size=[(3, 3), (1, 9), (5, 5), (2, 4)],
    remove_center=[False, True],
    dtype=[torch.float32, torch.bfloat16],
)
def test_stride_and_kernel_size(kernel_size, remove_center, dtype, backend):
    """Defects 2 and 8: the launch fits the output's size, and any kernel works."""
    problem = make_problem(
        size=(9, 11),
        kernel_size=kernel_size,
        stride=(2, 3),
        padding=(3, 4),
        dilation=(2, 1),
        remove_center=remove_center,
        dtype=dtype,
    )
    check_against_reference(problem, backend.run)


def test_more_points_than_a_block_holds(backend):
    problem = make_problem(
        batch=1,
        size=(24, 24),
        kernel_size=(21, 17),
        stride=(2, 4),
        padding=(0, 0),
        dtype=torch.float32,
    )
    check_against_reference(problem, backend.run)


@pairwise(backend=BACKENDS, dtype=[torch.float16, torch.bfloat16])
def test_16_bit_gradients(dtype, backend):
    """Defects 9 and 17."""
    check_against_reference(make_problem(size=(12, 13), groups=5, dtype=dtype), backend.run)


@pytest.mark.parametrize(("kernel_size", "offset"), [((1, 1), 10.0), ((3, 3), 11.0)])
def test_positions_are_rounded_as_in_the_reference(kernel_size, offset, backend):
    # At whole coordinates the derivative jumps: one rounding less, as in a fused multiply-add, or
    # another order, and some points are on the other side.
    problem = make_problem(kernel_size=kernel_size, padding=(4, 4), offset_scale=0.7, size=(12, 12))
    # -4 + 10 * 0.7 is 3, but less if the product is not rounded; -3 + (11 - 1) * 0.7 is 4, but
    # less if the sum is not made first.
    offsets = 2 * kernel_size[0] * kernel_size[1]
    problem.offset_mask[:, :5, :5, :offsets] = offset
    check_against_reference(problem, backend.run)


def test_positions_far_to_the_right(backend):
    """Defect 10: positions of 16-bit tensors are float32; float16 would round by a pixel."""
    problem = make_problem(batch=1, size=(2, 1500), groups=1, dtype=torch.float16)
    check_against_reference(problem, backend.run)


@pairwise(
    backend=BACKENDS,
    layout=LAYOUTS,
    size=[(6, 7), (1, 7), (6, 1), (1, 1)],
    dtype=[torch.float32, torch.bfloat16],
)
def test_any_strides(layout, size, dtype, backend):
    """Defect 11: also tensors that are not aligned for wide loads."""
    problem = make_problem(size=size, dtype=dtype)
    strided = problem._replace(
        grad_output=layout(problem.grad_output),
        value=layout(problem.value),
        offset_mask=layout(problem.offset_mask),
    )
    check_against_reference(strided, backend.run)
    if backend.kind == "cpu":
        assert all(map(torch.equal, backend.run(strided), backend.run(problem)))


def test_expanded_tensors(backend):
    problem = make_problem()
    expanded = problem._replace(
        grad_output=torch.ones(()).double().expand(problem.grad_output.shape),
        value=problem.value[:1, :1, :1].expand(problem.value.shape),
        offset_mask=problem.offset_mask[:1].expand(problem.offset_mask.shape),
    )
    check_against_reference(expanded, backend.run)


@over(*CPU, *HOST)
def test_pitches_beyond_32_bits(backend):
    """Defect 7: rows that are more than 2^31 elements apart."""
    problem = make_problem(batch=1, size=(2, 5), dtype=torch.float16)
    channels = problem.value.shape[-1]
    pitch = 2**31 + 5 * channels
    memory = untouched(pitch + 4096, dtype=torch.float16)
    value = memory.as_strided(problem.value.shape, (2 * pitch, pitch, channels, 1))
    far = problem._replace(value=value.copy_(problem.value))
    check_against_reference(problem, lambda _: backend.run(far))


@pairwise(backend=BACKENDS, dtype=DTYPES, offset=[math.nan, math.inf, -math.inf, 6e4, -6e4, 1e30])
def test_points_outside_count_for_nothing(offset, dtype, backend):
    """Defect 14: nothing is read for them, whatever the other elements of the point are."""
    problem = make_problem(spare=0, dtype=dtype)
    points = 9
    rows = problem.offset_mask.unflatten(-1, (problem.groups, 3 * points))
    # The second point's x, the third's y, the fourth's mask and x.
    rows[..., 2] = offset
    rows[..., 5] = offset
    rows[..., 6] = offset
    rows[..., 2 * points + 3] = math.nan
    rows[..., 2 * points + 1] = math.inf
    results = backend.run(problem)

    without = problem._replace(offset_mask=problem.offset_mask.clone())
    rows = without.offset_mask.unflatten(-1, (problem.groups, 3 * points))
    rows[..., 2:8] = 100.0
    rows[..., 2 * points + 1 : 2 * points + 4] = 0.0
    check_against_reference(without, lambda _: results)
    if backend.repeats_its_bits:
        assert all(map(torch.equal, results, backend.run(without)))
    grads = results[2].unflatten(-1, (problem.groups, 3 * points))
    assert not grads[..., 2:8].any()
    assert not grads[..., 2 * points + 1 : 2 * points + 4].any()


@pairwise(backend=BACKENDS, dtype=DTYPES)
def test_points_on_the_border_count_for_nothing(dtype, backend):
    """Defect 14: a point at -1 or W exactly is outside, and so is what it would read."""
    problem = make_problem(size=(1, 1), padding=(1, 1), spare=0, dtype=dtype)
    offsets = problem.offset_mask.unflatten(-1, (problem.groups, 27))
    # All but the centre are there already.
    offsets[..., :18] = 0.0
    offsets[..., 8:10] = -1.0
    problem.value[:] = math.nan
    problem.value[..., 5] = 3.0
    assert not any(result.any() for result in backend.run(problem))


def test_nan_mask_of_a_point_inside_propagates(backend):
    problem = make_problem(sigma=0.0, padding=(0, 0), dtype=torch.float32)
    problem.offset_mask[0, 0, 0, 18] = math.nan
    output, grad_value, _ = backend.run(problem)
    assert output[0, 0, 0, :16].isnan().all()
    assert not output[0, 0, 0, 16:].isnan().any()
    assert grad_value.isnan().any()


@pairwise(backend=BACKENDS, dtype=[torch.float64, torch.float32, torch.float16])
def test_infinite_pixel_at_the_border(dtype, backend):
    # Half a pixel outside, one corner is 0 and one is infinite: their sum is not NaN.
    problem = make_problem(
        groups=1, kernel_size=(1, 1), padding=(0, 0), spare=0, batch=1, dtype=dtype
    )
    problem.value[:] = math.inf
    problem.offset_mask[..., :2] = 0.0
    problem.offset_mask[..., 2] = 1.0
    problem.offset_mask[:, 0, :, 1] = -0.5
    problem.offset_mask[:, -1, :, 1] = 0.5
    problem.offset_mask[:, :, 0, 0] = -0.5
    problem.offset_mask[:, :, -1, 0] = 0.5
    output = backend.run(problem)[0]
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert output[(slice(None), *corner)].isinf().all()


def test_only_the_gradients_that_are_needed(backend):
    problem = make_problem(dtype=torch.float32).on(backend.device)
    expected = backend.backward(problem)
    for needs in ((True, False), (False, True), (False, False)):
        gradients = backend.backward(problem, *needs)
        for gradient, wanted, needed in zip(gradients, expected, needs, strict=True):
            # In the order of atomic additions the last bits may differ.
            torch.testing.assert_close(
                gradient, wanted if needed else torch.empty_like(gradient[:0])
            )


@pairwise(backend=BACKENDS, dtype=DTYPES)
def test_empty_batch(dtype, backend):
    problem = make_problem(batch=0, dtype=dtype)
    for result, like in zip(backend.run(problem), problem[:3], strict=True):
        assert result.shape == like.shape
        assert result.dtype == dtype


@over("deterministic_on_host", "cuda_deterministic")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_deterministic_backward_repeats_its_bits(dtype, backend):
    """On the host, in any order of blocks and threads."""
    problem = make_problem(size=(17, 19), groups=3, width=24, dtype=dtype)
    first = backend.run(problem)
    for _ in range(3):
        assert all(map(torch.equal, backend.run(problem), first))


def test_same_bits_on_every_device_on_host(hosts):
    """No result depends on the launch, but for floating-point sums of the gradient of value."""
    problem = make_problem(size=(17, 19), groups=3, width=24, dtype=torch.float32)
    default, deterministic = hosts[:2]
    first = deterministic.run(problem)
    for device in (*DEVICES, "tiny"):
        default.host_device = deterministic.host_device = device
        assert all(map(torch.equal, deterministic.run(problem), first))
        output, _, grad_offset_mask = default.run(problem)
        assert torch.equal(output, first[0])
        assert torch.equal(grad_offset_mask, first[2])


DETERMINISTIC = ("deterministic_on_host", "ptx_75_deterministic", "ptx_90_deterministic")


@over(*DETERMINISTIC, "cuda_deterministic")
def test_fixed_point_sums_of_any_size(backend):
    """They hold what all points add to one pixel, and are as precise at any scale."""
    problem = make_problem(batch=1, size=(6, 7), groups=2, width=16, spare=0, dtype=torch.float32)
    points = problem.offset_mask.unflatten(-1, (problem.groups, 27))
    # Point k is in column k // 3 and row k % 3 of the kernel; all are moved to the pixel (2, 3).
    columns = torch.arange(7).view(7, 1, 1) + torch.arange(9) // 3 - 1
    rows = torch.arange(6).view(6, 1, 1, 1) + torch.arange(9) % 3 - 1
    points[..., 0:18:2] = 3 - columns
    points[..., 1:18:2] = 2 - rows
    points[..., 18:] = 1.9999
    problem.grad_output[:] = -1.9999
    smallest = float(torch.finfo(torch.float32).smallest_normal)
    for grad, mask in [(1, 1), (1e30, 1e-35), (1e-35, 1e30), (1, smallest), (smallest, 1)]:
        scaled = problem._replace(
            grad_output=problem.grad_output * grad, offset_mask=problem.offset_mask.clone()
        )
        masks = scaled.offset_mask.unflatten(-1, (problem.groups, 27))[..., 18:]
        masks *= mask
        check_against_reference(scaled, backend.run)
        # The last ones are the largest.
        masks[0, -1, -1, -1, -1] *= 1000
        scaled.grad_output[0, -1, -1, -1] *= 1000
        check_against_reference(scaled, backend.run)


@over(*DETERMINISTIC, "cuda_deterministic")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_gradients_that_are_not_finite(dtype, backend, hosts):
    """They reach the elements of the gradient of value that they reach in floating point."""
    problem = make_problem(size=(8, 9), groups=3, width=16, sigma=0.5, dtype=dtype)
    problem.grad_output[0, 1, 2, 3] = math.inf
    problem.grad_output[0, 1, 3, 3] = -math.inf
    problem.grad_output[0, 6, 6, 4] = -math.inf
    problem.grad_output[1, 4, 4, 20] = math.nan
    problem.grad_output[1, 0, 0, 40] = math.inf
    expected = hosts[0].backward(problem, True, False)[0]
    assert expected.isnan().any()
    assert expected.isposinf().any()
    assert expected.isneginf().any()
    assert expected.isfinite().any()
    actual = backend.backward(problem.on(backend.device), True, False)[0].cpu()
    # Infinities and NaN are compared exactly.
    tolerance = 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=8 * tolerance, equal_nan=True)


@over("default_on_host", "cuda_default")
@pairwise(kernel_size=[(3, 3), (5, 3)], remove_center=[False, True])
def test_fast_sums_of_corners(kernel_size, remove_center, backend):
    """Sums of four corners in float16 double the error, as they may; other types do not change."""
    problem = make_problem(
        size=(20, 20), groups=4, kernel_size=kernel_size, remove_center=remove_center
    )
    half = problem.to(torch.float16)
    expected = run_reference(half.to(torch.float64))[0]
    fast = backend.run(half._replace(fast=True))[0]
    assert not torch.equal(fast, backend.run(half)[0])
    # Measured: 8.5e-4 at most.
    assert relative_error(fast, expected) <= 1.5e-3
    for dtype in (torch.float32, torch.bfloat16):
        same = problem.to(dtype)
        assert torch.equal(backend.run(same._replace(fast=True))[0], backend.run(same)[0])


@pairwise(
    backend=CPU,
    dtype=[torch.float32, torch.bfloat16],
    sizes=[(1, 1, 32), (1, 2, 16), (1, 5, 8), (3, 4, 16)],
)
def test_same_bits_for_any_number_of_threads(sizes, dtype, backend):
    # Large enough for several bands of rows, and for a slab of 16-bit sums to be cut.
    batch, groups, width = sizes
    problem = make_problem(batch=batch, size=(60, 70), groups=groups, width=width, dtype=dtype)
    first, *others = results_by_threads(lambda: backend.run(problem))
    for result in others:
        assert all(map(torch.equal, result, first))


@over("cpu_default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype, backend):
    problem = make_problem(batch=1, size=(160, 160), groups=4, width=32, spare=4, dtype=dtype)
    backend.run(make_problem(dtype=dtype))
    operators = backend.operators
    for operator, arguments in (
        (operators.dcnv4_forward, problem[1:]),
        (operators.dcnv4_backward, (*problem, False, True, True)),
    ):
        used, written = peak_of(operator, *arguments)
        read = sum(tensor.nbytes for tensor in arguments if isinstance(tensor, torch.Tensor))
        assert used + read <= 1.2 * (written + read)
