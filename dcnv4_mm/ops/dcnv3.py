"""DCNv3 by DCNv4's kernels: offsets and masks side by side in one tensor are all it takes."""

import torch
from torch import Tensor

from dcnv4_mm.ops._checks import check_floating
from dcnv4_mm.ops.arguments import read_bool, read_int, read_pair
from dcnv4_mm.ops.dcnv4.functional import dcnv4
from dcnv4_mm.ops.dcnv4.layout import num_points

__all__ = ["dcnv3"]


def dcnv3(
    value: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    groups: int,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Deformable convolution v3: sampling at learned locations, weighted by softmaxed masks.

    It is :func:`dcnv4_mm.ops.functional.dcnv4` with offsets and masks in two tensors, as
    InternImage has them. Pairs are (rows, columns).

    Args:
        value: (N, H, W, C) float64, float32, float16 or bfloat16; any strides.
        offset: (N, H_out, W_out, 2 * G * K) for G groups of K points, in pixels: element
            ``(g * K + k) * 2`` is x of point k, the next one y. Points run over the kernel's
            columns first, as in :mod:`dcnv4_mm.ops.dcnv4.layout`.
        mask: (N, H_out, W_out, G * K). The operator does no softmax.
        groups: Number of groups G, a divisor of C.
        kernel_size: Size of the grid of points, K = rows * columns (one less without center).
        stride: Step between output pixels.
        padding: How far the grid may reach over the border.
        dilation: Distance between the grid's points.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        remove_center: Leaves out the grid's middle point.

    Returns:
        (N, H_out, W_out, C), contiguous, in the dtype of ``value`` (under autocast, the autocast
        type).

    Raises:
        TypeError: A tensor's dtype is not supported, they differ, or an argument is not a number
            of the kind it must be.
        ValueError: A shape, a device or an argument does not fit.

    Note:
        A point exactly one pixel outside the image has no derivative, as in InternImage's CUDA
        kernel; its pure PyTorch version has one there.

    Source:
        Wang et al., "InternImage", CVPR 2023, equation (2).

    Example:
        >>> value, offset = torch.randn(2, 14, 14, 64), torch.randn(2, 14, 14, 72)
        >>> mask = torch.randn(2, 14, 14, 4, 9).softmax(-1).flatten(-2)
        >>> dcnv3(value, offset, mask, groups=4).shape
        torch.Size([2, 14, 14, 64])
    """
    groups = read_int("groups", groups, minimum=1)
    for name, tensor in (("offset", offset), ("mask", mask)):
        check_floating(name, tensor)
    if mask.dim() != 4 or mask.shape[-1] % groups:
        raise ValueError(
            f"mask: expected (N, H_out, W_out, groups * points) with groups = {groups}, got "
            f"{tuple(mask.shape)}"
        )
    remove_center = read_bool("remove_center", remove_center)
    points = num_points(read_pair("kernel_size", kernel_size, minimum=1), remove_center)
    if mask.shape[-1] != groups * points:
        raise ValueError(
            f"mask: expected last dim = {groups * points} ({groups} groups of {points} points), "
            f"got {mask.shape[-1]}"
        )
    expected = (*mask.shape[:-1], 2 * mask.shape[-1])
    if offset.shape != expected:
        raise ValueError(f"offset: expected {expected}, got {tuple(offset.shape)}")
    if offset.dtype != mask.dtype:
        raise TypeError(
            f"offset and mask must have one dtype, got {offset.dtype} and {mask.dtype}: convert "
            "one with .to()"
        )
    # [N, H_out, W_out, G, 3 * K]
    rows = torch.cat([part.unflatten(-1, (groups, -1)) for part in (offset, mask)], dim=-1)
    return dcnv4(
        value,
        rows.flatten(-2),
        groups=groups,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_scale=offset_scale,
        remove_center=remove_center,
    )
