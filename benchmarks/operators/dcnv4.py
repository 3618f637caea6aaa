"""DCNv4 against other formulations of it, on a CPU and on a GPU; its modes; its memory."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from compare import Implementation, Settings, compare
from gpu.ceilings import ceilings, floor_microseconds
from measure import Call, Table, buffer_sets, peak_bytes, relative_error
from operators.cases import CPU_CASES, PAPER_CASES, STAGE_CASES, WIDE_CASES, Case, make_inputs
from operators.comparison import Operator, compare_operators, forward_calls, to_float32
from operators.peers import deformops_dcnv4, onnxruntime_deform_conv
from torch import Tensor

from dcnv4_mm.ops.dcnv4.layout import kernel_points, num_points, output_size, unpack
from dcnv4_mm.ops.dcnv4.reference import dcnv4_backward_reference, dcnv4_forward_reference
from dcnv4_mm.ops.functional import dcnv4

KERNEL = ([3, 3], [1, 1], [1, 1], [1, 1])


def expected(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Tensor:
    """The output in float64, a few images at a time."""
    settings = (*KERNEL, case.groups, 1.0, False, False)
    parts = zip(value.split(4), offset_mask.split(4), strict=True)
    return torch.cat([dcnv4_forward_reference(v.double(), o.double(), *settings) for v, o in parts])


# Limits of the relative error after one rounding; measured 4e-7, 2e-4 and 1.7e-3.
LIMITS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def check_operator(device: torch.device) -> None:
    """Ends the program unless output and gradients are right: a wrong result is not timed."""
    case = Case(batch=3, height=9, width=11, groups=5, channels=16)
    settings = (*KERNEL, case.groups, 1.0, False)
    for dtype, limit in LIMITS.items():
        tensors = make_inputs(case, dtype)
        value, offset_mask, grad = (tensor.double() for tensor in tensors)
        exact = [
            dcnv4_forward_reference(value, offset_mask, *settings),
            *dcnv4_backward_reference(grad, value, offset_mask, *settings),
        ]
        *leaves, grad = (tensor.to(device) for tensor in tensors)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        output = dcnv4(*leaves, groups=case.groups)
        results = [output, *torch.autograd.grad(output, leaves, grad)]
        names = ("output", "gradient of value", "gradient of offset_mask")
        for name, result, right in zip(names, results, exact, strict=True):
            error = relative_error(result, right)
            # NaN is no pass either.
            if not error <= limit:
                raise SystemExit(
                    f"error: nothing is measured: dcnv4's {name} on {device} in {str(dtype)[6:]} "
                    f"has a relative error of {error:.2g}, expected at most {limit:g}"
                )


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
        value: (N, H, W, C); this and the others as in :func:`dcnv4_mm.ops.functional.dcnv4`.
        offset_mask: (N, H_out, W_out, M), offsets and masks of the groups.
        groups: Number of groups.
        kernel_size: Rows and columns of the kernel.
        stride: Distance of the output pixels.
        padding: Zeros around the image.
        dilation: Distance of the kernel's points.
        offset_scale: Factor of the offsets.
        remove_center: Whether the kernel has no point at its centre.
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
    locations = (offsets + grid) * (offset_scale * 2 / size) + (centers * 2 + 1) / size - 1

    pixels = rows * columns
    image = value.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    if points_first:
        locations = locations.permute(0, 3, 4, 1, 2, 5).reshape(-1, points, pixels, 2)
        masks = masks.permute(0, 3, 4, 1, 2).reshape(-1, 1, points, pixels)
    else:
        locations = locations.permute(0, 3, 1, 2, 4, 5).reshape(-1, pixels, points, 2)
        masks = masks.permute(0, 3, 1, 2, 4).reshape(-1, 1, pixels, points)
    samples = F.grid_sample(image, locations, mode="bilinear", align_corners=False)
    output = (samples * masks).sum(dim=-2 if points_first else -1)
    return output.view(batch, channels, rows, columns).permute(0, 2, 3, 1).contiguous()


def _ours(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Operator:
    function = partial(dcnv4, groups=case.groups)
    return Operator(function=function, inputs=(value, offset_mask))


def _ours_fast(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Operator:
    if value.dtype != torch.float16:
        raise NotImplementedError("differs from the default in float16 only")
    function = partial(dcnv4, groups=case.groups, precision="fast")
    return Operator(function=function, inputs=(value, offset_mask))


def _original(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Operator:
    from DCNv4.functions import DCNv4Function  # the released package, from its sdist

    per_step = min(case.batch, 256)

    def function(v: Tensor, o: Tensor) -> Tensor:
        settings = (3, 3, 1, 1, 1, 1, 1, 1, case.groups, case.channels, 1.0, per_step, 0)
        return DCNv4Function.apply(v, o, *settings)

    return Operator(function=function, inputs=(value.contiguous(), offset_mask.contiguous()))


def _grid_sample(
    case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor, points_first: bool = False
) -> Operator:
    inputs, dtype = to_float32(value, offset_mask)
    function = partial(grid_sample_dcnv4, groups=case.groups, points_first=points_first)
    return Operator(function=function, inputs=inputs, dtype=dtype)


def _grid_sample_compiled(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Operator:
    inputs, dtype = to_float32(value, offset_mask)
    function = torch.compile(partial(grid_sample_dcnv4, groups=case.groups), dynamic=False)
    return Operator(function=function, inputs=inputs, dtype=dtype)


def _deform_conv_inputs(
    case: Case, value: Tensor, offset_mask: Tensor
) -> tuple[tuple[Tensor, ...], str | None]:
    """Image, offsets and masks of a depthwise DCNv2 that computes a DCNv4, and their dtype."""
    dtype = None
    if value.device.type == "cpu":
        (value, offset_mask), dtype = to_float32(value, offset_mask)
    offsets, masks = unpack(offset_mask, case.groups, 9)
    # Its points are in order of rows, their offsets (y, x).
    offsets = offsets.unflatten(-2, (3, 3)).transpose(-3, -2).flip(-1)
    masks = masks.unflatten(-1, (3, 3)).transpose(-2, -1)
    # [N, 2 G K, H, W] and [N, G K, H, W]
    offsets = offsets.flatten(3).permute(0, 3, 1, 2).contiguous()
    masks = masks.flatten(3).permute(0, 3, 1, 2).contiguous()
    image = value.permute(0, 3, 1, 2).contiguous()
    return (image, offsets, masks), dtype


def _deform_conv2d(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Operator:
    """A depthwise DCNv2 with weights of 1 computes a DCNv4."""
    from torchvision.ops import deform_conv2d

    (image, offsets, masks), dtype = _deform_conv_inputs(case, value, offset_mask)
    weight = torch.ones(image.shape[1], 1, 3, 3, dtype=image.dtype, device=image.device)

    def function(i: Tensor, o: Tensor, m: Tensor) -> Tensor:
        return deform_conv2d(i, o, weight, padding=1, mask=m).permute(0, 2, 3, 1)

    return Operator(function=function, inputs=(image, offsets, masks), dtype=dtype)


def _onnxruntime(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Operator:
    inputs, dtype = _deform_conv_inputs(case, value, offset_mask)
    return replace(onnxruntime_deform_conv(*inputs, case.groups), dtype=dtype)


def _deformops(case: Case, value: Tensor, offset_mask: Tensor, *_: Tensor) -> Operator:
    return deformops_dcnv4(value, offset_mask, case.groups)


def _convolution(case: Case, value: Tensor, *_: Tensor, depthwise: bool) -> Operator:
    image = value.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    channels = image.shape[1]
    groups = channels if depthwise else 1
    weight = torch.ones(channels, channels // groups, 3, 3, dtype=value.dtype, device=value.device)
    weight = weight.contiguous(memory_format=torch.channels_last)
    function = partial(F.conv2d, weight=weight, padding=1, groups=groups)
    return Operator(function=function, inputs=(image,), same=False)


def _attention(case: Case, value: Tensor, *_: Tensor) -> Operator:
    """Attention over all pixels of an image, in heads of 32 channels."""
    tokens = value.flatten(1, 2)
    if tokens.shape[-1] % 32:
        raise NotImplementedError("needs a multiple of 32 channels")
    heads = tokens.unflatten(-1, (-1, 32)).transpose(1, 2).contiguous()
    copies = tuple(heads.clone() for _ in range(3))
    return Operator(function=F.scaled_dot_product_attention, inputs=copies, same=False)


OURS, PEER = "dcnv4", "grid_sample"
OPERATORS: dict[str, Callable[..., Operator]] = {
    OURS: _ours,
    PEER: _grid_sample,
    "grid_sample, points first": partial(_grid_sample, points_first=True),
    "torchvision deform_conv2d": _deform_conv2d,
    "onnxruntime DeformConv": _onnxruntime,
    "deformops": _deformops,
}
PACKAGES = ("torchvision deform_conv2d", "onnxruntime DeformConv", "deformops")
GPU_OPERATORS = OPERATORS | {
    f"{OURS}, fast": _ours_fast,
    "original DCNv4": _original,
    "grid_sample, compiled": _grid_sample_compiled,
    "convolution 3x3": partial(_convolution, depthwise=False),
    "depthwise convolution 3x3": partial(_convolution, depthwise=True),
    "scaled_dot_product_attention": _attention,
}


def _targets(case: Case, measured: str) -> dict[tuple[str, int], str]:
    target = case.target if measured == "forward" else case.backward_target
    targets = {} if target is None else {(PEER, 1): f">= {target:g}"}
    least = ">= 5" if measured == "forward" else ">= 3"
    return targets | {(name, 1): least for name in PACKAGES}


def run(table: Table, settings: Settings) -> None:
    """Ours and other formulations; on a GPU also other operators of the same size."""
    cases = (*PAPER_CASES, *WIDE_CASES) if settings.on_gpu else CPU_CASES
    compare_operators(
        table,
        settings,
        cases=settings.options.cases or cases,
        make_inputs=make_inputs,
        expected=expected,
        operators=GPU_OPERATORS if settings.on_gpu else OPERATORS,
        targets=_targets,
    )


def run_modes(table: Table, settings: Settings) -> None:
    """Our kernels in every mode, beside what the device allows at most."""
    limits = ceilings() if settings.on_gpu else {}
    cases = settings.options.cases or (*PAPER_CASES, *WIDE_CASES, *STAGE_CASES)
    for case, dtype in itertools.product(cases, settings.dtypes):
        inputs = make_inputs(case, getattr(torch, dtype), settings.device)
        itemsize = inputs[0].element_size()
        # Four corners of nine points for every element of the output go through the L1 cache.
        through_l1 = 36 * inputs[0].numel() * itemsize
        forward = {OURS: partial(_forward, case, inputs, _ours)}
        if dtype == "float16":
            forward[f"{OURS}, fast"] = partial(_forward, case, inputs, _ours_fast)
        backward = {
            name: partial(_backward_calls, case, inputs, deterministic=deterministic)
            for name, deterministic in ((OURS, False), (f"{OURS}, deterministic", True))
        }
        for measured, modes in (("forward", forward), ("backward", backward)):
            size = case.bytes(itemsize, measured == "backward")
            floor = floor_microseconds(size, through_l1, limits)

            def build(mode, size=size, floor=floor):
                calls, figures = mode(buffer_sets(size, settings.device))
                figures["floor_microseconds"] = floor
                return Implementation(calls=calls, bytes=size, figures=figures)

            compare(
                table,
                settings,
                case=case,
                measured=measured,
                dtype=dtype,
                builders={name: partial(build, mode) for name, mode in modes.items()},
                in_graphs=True,
            )


def _forward(
    case: Case, inputs: tuple[Tensor, ...], make: Callable[..., Operator], sets: int
) -> tuple[list[Call], dict[str, object]]:
    operator = make(case, *inputs)
    with torch.inference_mode():
        output = operator.function(*operator.inputs)
    error = relative_error(output, expected(case, *inputs))
    return forward_calls(operator, sets), dict(relative_error=error)


def _backward_calls(
    case: Case, inputs: tuple[Tensor, ...], sets: int, *, deterministic: bool
) -> tuple[list[Call], dict[str, object]]:
    """The backward operator without autograd around it."""
    settings = (*KERNEL, case.groups, 1.0, False, False, deterministic, True, True)

    def call(value: Tensor, offset_mask: Tensor, grad: Tensor) -> None:
        torch.ops.dcnv4_mm.dcnv4_backward(grad, value, offset_mask, *settings)

    copies = [tuple(tensor.clone() for tensor in inputs) for _ in range(sets)]
    return [partial(call, *tensors) for tensors in copies], {}


def run_memory(table: Table, settings: Settings) -> None:
    """Peak memory of a call, inputs included, by the size of its inputs and outputs."""
    case = Case(height=160, width=160, groups=4, channels=32)
    for dtype in settings.dtypes:
        value, offset_mask, grad = make_inputs(case, getattr(torch, dtype), settings.device)
        arguments = (value, offset_mask, *KERNEL, case.groups, 1.0, False, False)
        calls = {
            "forward memory": lambda a=arguments: torch.ops.dcnv4_mm.dcnv4_forward(*a),
            "backward memory": lambda a=arguments, g=grad: torch.ops.dcnv4_mm.dcnv4_backward(
                g, *a, False, True, True
            ),
        }
        given = value.nbytes + offset_mask.nbytes
        for measured, call in calls.items():
            held = given + (grad.nbytes if measured.startswith("backward") else 0)
            returned = given if measured.startswith("backward") else grad.nbytes
            row = dict(case=case, measured=measured, dtype=dtype, implementation=OURS)
            row["threads"] = "" if settings.on_gpu else torch.get_num_threads()
            if not table.has(**row):
                used = (held + peak_bytes(call, settings.device)) / (held + returned)
                table.add(**row, ratio=used, target="<= 1.2")
