"""DCNv4 against formulations with ``grid_sample``: speed of one call; and its memory."""

import functools
import itertools
import statistics

import torch
import torch.nn.functional as F
from cases import CASES, Case, make_inputs
from measure import Record, interleaved, peak_bytes, ratio
from torch import Tensor

from dcnv4_mm.ops.dcnv4.layout import kernel_points, num_points, output_size, unpack
from dcnv4_mm.ops.functional import dcnv4


def _pair(number: int | tuple[int, int]) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else number


def grid_sample_dcnv4(
    value: Tensor,
    offset_mask: Tensor,
    *,
    groups: int,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    points_first: bool = False,
) -> Tensor:
    """DCNv4 as one vectorised ``grid_sample`` over all images, groups, pixels and points.

    Args:
        value: As in :func:`dcnv4_mm.ops.functional.dcnv4`; so are the others.
        offset_mask: See there.
        groups: See there.
        kernel_size: See there.
        stride: See there.
        padding: See there.
        dilation: See there.
        offset_scale: See there.
        remove_center: See there.
        points_first: Whether the samples are (N * G, D, K, pixels), whose sum over K is faster,
            instead of (N * G, D, pixels, K), as this formulation is usually written.

    Returns:
        (N, H_out, W_out, C).
    """
    batch, height, width, channels = value.shape
    kernel, pad, dilate = _pair(kernel_size), _pair(padding), _pair(dilation)
    rows, columns = output_size((height, width), kernel, _pair(stride), pad, dilate)
    points = num_points(kernel, remove_center)
    options = {"dtype": value.dtype, "device": value.device}

    center = torch.tensor([d * (k - 1) // 2 for k, d in zip(kernel, dilate, strict=True)])
    # [K, 2]: x and y of the kernel's points around its centre.
    grid = torch.tensor(list(kernel_points(kernel, remove_center))) * torch.tensor(dilate) - center
    grid = grid.flip(-1).to(**options)
    offsets, masks = unpack(offset_mask, groups, points)
    origin = center - torch.tensor(pad)
    y = torch.arange(rows, **options) * _pair(stride)[0] + origin[0]
    x = torch.arange(columns, **options) * _pair(stride)[1] + origin[1]
    # [H_out, W_out, 1, 1, 2]: the kernel's centre for every output pixel.
    centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[:, :, None, None]
    # [N, H_out, W_out, G, K, 2], in the units of grid_sample: pixel i of n is at (2 i + 1) / n - 1.
    size = torch.tensor([width, height], **options)
    places = (offsets + grid) * (offset_scale * 2 / size) + (centers * 2 + 1) / size - 1

    pixels = rows * columns
    image = value.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    if points_first:
        places = places.permute(0, 3, 4, 1, 2, 5).reshape(-1, points, pixels, 2)
        masks = masks.permute(0, 3, 4, 1, 2).reshape(-1, 1, points, pixels)
    else:
        places = places.permute(0, 3, 1, 2, 4, 5).reshape(-1, pixels, points, 2)
        masks = masks.permute(0, 3, 1, 2, 4).reshape(-1, 1, pixels, points)
    samples = F.grid_sample(image, places, mode="bilinear", align_corners=False)
    output = (samples * masks).sum(dim=-2 if points_first else -1)
    return output.view(batch, channels, rows, columns).permute(0, 2, 3, 1).contiguous()


def points_first(value: Tensor, offset_mask: Tensor, *, groups: int) -> Tensor:
    return grid_sample_dcnv4(value, offset_mask, groups=groups, points_first=True)


OURS = "dcnv4"
PEER = "grid_sample"
CONTENDERS = {OURS: dcnv4, PEER: grid_sample_dcnv4, "grid_sample, points first": points_first}


def peer_dtype(dtype: torch.dtype) -> torch.dtype:
    """The peers run in float32 for 16-bit types.

    In 16 bits their relative coordinates are wrong by pixels, and torch 2.13's ``grid_sample`` then
    writes outside its memory.
    """
    return dtype if dtype.itemsize >= 4 else torch.float32


def check(case: Case, inputs: dict[str, tuple[Tensor, ...]]) -> None:
    """Raises unless all contenders compute the same."""
    value, offset_mask, _ = inputs[OURS]
    expected = dcnv4(value.double(), offset_mask.double(), groups=case.groups)
    for name, function in CONTENDERS.items():
        value, offset_mask, _ = inputs[name]
        output = function(value, offset_mask, groups=case.groups)
        worst = (output.double() - expected).abs().max().item()
        # Coordinates, in float32, lose the bits of the image's width; results are up to 20.
        coordinates = 50 * torch.finfo(torch.float32).eps * case.width
        tolerance = coordinates + 20 * torch.finfo(value.dtype).eps
        if worst > tolerance:
            raise RuntimeError(f"{case}: {name} differs by {worst:.2g}, more than {tolerance:.2g}")


def run(record: Record, threads: list[int], dtypes: list[torch.dtype], seconds: float) -> None:
    """Measures every case, forward, and forward with backward."""
    for case, dtype in itertools.product(CASES, dtypes):
        ours = make_inputs(case, dtype)
        peers = tuple(tensor.to(peer_dtype(dtype)) for tensor in ours)
        inputs = {name: ours if name == OURS else peers for name in CONTENDERS}
        check(case, inputs)

        def forward(name, inputs=inputs, groups=case.groups):
            with torch.inference_mode():
                CONTENDERS[name](*inputs[name][:2], groups=groups)

        leaves = {
            name: [tensor.clone().requires_grad_() for tensor in tensors[:2]]
            for name, tensors in inputs.items()
        }

        def both(name, inputs=inputs, leaves=leaves, groups=case.groups):
            output = CONTENDERS[name](*leaves[name], groups=groups)
            torch.autograd.grad(output, leaves[name], inputs[name][2])

        first_target = case.target if dtype == torch.float32 else None
        second_target = case.backward_target if dtype == torch.float32 else None
        _measure(record, case, dtype, threads, seconds, "forward", forward, first_target)
        _measure(record, case, dtype, threads, seconds, "forward+backward", both, second_target)


def _measure(record, case, dtype, threads, seconds, measured, call, target) -> None:
    contenders, thread_counts = {}, {}
    for name, count in itertools.product(CONTENDERS, threads):
        contenders[f"{name}/{count}"] = functools.partial(call, name)
        thread_counts[f"{name}/{count}"] = count
    times = interleaved(contenders, seconds=seconds, threads=thread_counts)
    row = dict(benchmark="dcnv4", case=str(case), measured=measured, dtype=str(dtype)[6:])
    for count in threads:
        ours = times[f"{OURS}/{count}"]
        record.add(**row, threads=count, contender=OURS, times=ours)
        for name in CONTENDERS:
            if name == OURS:
                continue
            peer = times[f"{name}/{count}"]
            record.add(
                **row | {"dtype": str(peer_dtype(dtype))[6:]},
                threads=count,
                contender=name,
                times=peer,
                ratio=ratio(peer, ours),
                target=target if name == PEER and count == 1 else None,
            )
        one = times.get(f"{OURS}/1")
        if count > 1 and one is not None:
            # Short calls are not worth a second thread's start.
            expected = 1.6 if count == 2 and statistics.median(one) >= 2 else None
            record.add(
                **row,
                threads=count,
                contender=f"{OURS}, one thread",
                times=one,
                ratio=ratio(one, ours),
                target=expected,
            )


def run_memory(record: Record, dtype: torch.dtype) -> None:
    """Measures the peak memory of the raw operators, relative to their inputs and outputs."""
    case = Case(height=160, width=160, groups=4, channels=32)
    value, offset_mask, grad = make_inputs(case, dtype)
    arguments = (value, offset_mask, *([[3, 3]] + [[1, 1]] * 3), case.groups, 1.0, False, False)
    given = value.nbytes + offset_mask.nbytes
    row = dict(benchmark="dcnv4", case=str(case), dtype=str(dtype)[6:], target=1.2, at_most=True)
    threads = torch.get_num_threads()

    forward = peak_bytes(lambda: torch.ops.dcnv4_mm.dcnv4_forward(*arguments))
    share = (given + forward) / (given + grad.nbytes)
    record.add(**row, measured="forward memory", threads=threads, contender=OURS, ratio=share)

    both_given = given + grad.nbytes
    backward = peak_bytes(
        lambda: torch.ops.dcnv4_mm.dcnv4_backward(grad, *arguments, False, True, True)
    )
    share = (both_given + backward) / (both_given + given)
    record.add(**row, measured="backward memory", threads=threads, contender=OURS, ratio=share)
