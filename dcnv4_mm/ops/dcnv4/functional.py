"""The public function of DCNv4: checks, autocast and differentiation around the raw operators."""

from torch import Tensor

from dcnv4_mm.ops._autocast import autocast_dtype
from dcnv4_mm.ops._checks import check_floating, checked_by_kernels
from dcnv4_mm.ops._extension import load_library
from dcnv4_mm.ops.arguments import read_bool, read_float, read_int, read_pair
from dcnv4_mm.ops.dcnv4 import flops  # noqa: F401  (registers the formulas)
from dcnv4_mm.ops.dcnv4.layout import num_points, output_size
from dcnv4_mm.ops.dcnv4.registration import dcnv4_raw

__all__ = ["dcnv4"]

for _device_type in ("cpu", "cuda"):
    load_library(_device_type)

_PRECISIONS = ("default", "fast")


def dcnv4(
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
    precision: str = "default",
) -> Tensor:
    """Deformable convolution v4: sampling at learned locations, weighted by learned masks.

    For each group of channels, ``output = sum_k mask_k * bilinear(value, location_k)``, where
    ``location_k`` is a point of the kernel's grid plus a learned offset. The masks are used as they
    are: no softmax. A point on or beyond one pixel outside the image contributes nothing and has
    no gradient, and neither has one whose offset is not finite.

    Pairs are (rows, columns). All four floating-point types work, on every device; sums are
    float32 (float64 for float64). Under autocast both tensors are cast to the autocast type.

    Args:
        value: (N, H, W, C) float64, float32, float16 or bfloat16; any strides.
        offset_mask: (N, H_out, W_out, M) in the dtype of ``value``, with M >= 3 * G * K,
            for G groups of K points in the layout of :mod:`dcnv4_mm.ops.dcnv4.layout`. Offsets
            are in pixels of the input. What is beyond 3 * G * K is never read.
        groups: Number of groups G, a divisor of C.
        kernel_size: Size of the grid of points, K = rows * columns (one less without center).
        stride: Step between output pixels.
        padding: How far the grid may reach over the border.
        dilation: Distance between the grid's points.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        remove_center: Leaves out the grid's middle point.
        precision: ``"fast"`` lets the CUDA forward of float16 tensors sum the four corners of a
            point in float16. Everywhere else it equals ``"default"``: for other dtypes, on the
            CPU, and in the backward pass.

    Returns:
        (N, H_out, W_out, C), contiguous, in the dtype of ``value`` (under autocast, the autocast
        type), with the output size of a convolution.

    Raises:
        TypeError: A tensor's dtype is not supported, the two differ, or an argument is not a number
            of the kind it must be.
        ValueError: A shape, a device or an argument does not fit; the message says what does.

    Note:
        Differentiable with respect to both tensors; see docs/ops.md for second derivatives,
        forward mode and ``torch.func``.

    Source:
        Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for
        Vision Applications", CVPR 2024, section 3. Other than there, any kernel size, stride,
        group width and image size works.

    Example:
        >>> value = torch.randn(2, 14, 14, 64)
        >>> offset_mask = torch.randn(2, 14, 14, 112)  # 4 groups * 9 points * 3, padded
        >>> dcnv4(value, offset_mask, groups=4).shape
        torch.Size([2, 14, 14, 64])
    """
    geometry = (
        read_pair("kernel_size", kernel_size, minimum=1),
        read_pair("stride", stride, minimum=1),
        read_pair("padding", padding, minimum=0),
        read_pair("dilation", dilation, minimum=1),
    )
    groups = read_int("groups", groups, minimum=1)
    offset_scale = read_float("offset_scale", offset_scale)
    remove_center = read_bool("remove_center", remove_center)
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
    arguments = (*geometry, groups, offset_scale, remove_center, precision == "fast")

    if checked_by_kernels(value, offset_mask):
        try:
            return dcnv4_raw.eager(value, offset_mask, *arguments)
        except RuntimeError:
            pass  # The checks below say why; if they find nothing, the call below raises again.
    _check_tensors(value, offset_mask)
    _check_shapes(value, offset_mask, groups, geometry, remove_center)
    if (dtype := autocast_dtype(value)) is not None:
        value, offset_mask = value.to(dtype), offset_mask.to(dtype)
    elif value.dtype != offset_mask.dtype:
        raise TypeError(
            f"value and offset_mask must have one dtype, got {value.dtype} and "
            f"{offset_mask.dtype}: convert one with .to()"
        )
    return dcnv4_raw(value, offset_mask, *arguments)


def _check_tensors(value: Tensor, offset_mask: Tensor) -> None:
    check_floating("value", value)
    check_floating("offset_mask", offset_mask)
    if value.dim() != 4:
        raise ValueError(f"value: expected (N, H, W, C), got {tuple(value.shape)}")
    if offset_mask.dim() != 4:
        raise ValueError(
            f"offset_mask: expected (N, H_out, W_out, M), got {tuple(offset_mask.shape)}"
        )
    if value.device != offset_mask.device:
        raise ValueError(
            f"value and offset_mask must be on one device, got {value.device} and "
            f"{offset_mask.device}: move one with .to()"
        )


def _check_shapes(
    value: Tensor,
    offset_mask: Tensor,
    groups: int,
    geometry: tuple[tuple[int, int], ...],
    remove_center: bool,
) -> None:
    batch, height, width, channels = value.shape
    kernel_size = geometry[0]
    points = num_points(kernel_size, remove_center)
    if points < 1:
        raise ValueError("remove_center leaves a 1x1 kernel without points: use a larger kernel")
    if height < 1 or width < 1:
        raise ValueError(f"value must have at least one row and column, got {height} x {width}")
    if channels < 1 or channels % groups:
        raise ValueError(
            f"the channels of value must be a positive multiple of groups, got {channels} "
            f"channels and {groups} groups"
        )
    height_out, width_out = output_size((height, width), *geometry)
    if height_out < 1 or width_out < 1:
        raise ValueError(
            f"the kernel {kernel_size} with dilation {geometry[3]} is larger than "
            f"the image {height} x {width} with padding {geometry[2]}: pad more"
        )
    own_batch, rows, columns, last = offset_mask.shape
    if own_batch != batch or rows != height_out or columns != width_out:
        raise ValueError(
            "offset_mask: expected (N, H_out, W_out) = "
            f"{(batch, height_out, width_out)}, got {(own_batch, rows, columns)}"
        )
    if last < 3 * groups * points:
        raise ValueError(
            f"offset_mask: expected last dim >= {3 * groups * points} (3 * groups * points, "
            f"{groups} groups of {points} points), got {last}"
        )
