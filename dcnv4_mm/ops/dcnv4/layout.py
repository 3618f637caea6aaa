"""Layout of offsets and masks in ``offset_mask``, and the sizes that follow from it.

The last axis of ``offset_mask`` belongs to one output pixel. Group ``g`` owns its ``3 * K``
elements from ``g * 3 * K`` on: ``K`` pairs of offsets ``(x, y)``, width before height, then ``K``
masks.
The points run over the kernel's columns first: point ``k = column * rows + row``. What follows
after ``3 * G * K`` elements is padding, which is never read.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = [
    "kernel_points",
    "num_points",
    "offset_mask_channels",
    "offset_rows",
    "output_size",
    "pack",
    "unpack",
]


def kernel_points(
    kernel_size: tuple[int, int], remove_center: bool = False
) -> Iterator[tuple[int, int]]:
    """Yields the ``(row, column)`` of every sampling point in the order of the layout.

    Args:
        kernel_size: Rows and columns of the kernel.
        remove_center: Whether the middle point is left out; later points then move up by one.
    """
    rows, columns = kernel_size
    for column in range(columns):
        for row in range(rows):
            if not (remove_center and row == rows // 2 and column == columns // 2):
                yield row, column


def num_points(kernel_size: tuple[int, int], remove_center: bool = False) -> int:
    """Number of sampling points ``K`` of a kernel of ``(rows, columns)``."""
    return kernel_size[0] * kernel_size[1] - int(remove_center)


def offset_mask_channels(groups: int, points: int) -> int:
    """Last dim M of ``offset_mask`` as the released models have it: a multiple of 8."""
    return -(-3 * groups * points // 8) * 8


def output_size(
    input_size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """Rows and columns of the output, as for a convolution. All arguments are (rows, columns)."""
    # Written out, as a loop takes longer than all other checks of a call.
    height, width = input_size
    kernel_y, kernel_x = kernel_size
    stride_y, stride_x = stride
    padding_y, padding_x = padding
    dilation_y, dilation_x = dilation
    return (
        (height + 2 * padding_y - dilation_y * (kernel_y - 1) - 1) // stride_y + 1,
        (width + 2 * padding_x - dilation_x * (kernel_x - 1) - 1) // stride_x + 1,
    )


def offset_rows(groups: int, points: int) -> Tensor:
    """Indices of the offsets (not the masks) in the last axis of ``offset_mask``.

    Args:
        groups: Number of groups ``G``.
        points: Number of sampling points ``K``.

    Returns:
        int64 tensor of shape (G * 2 * K,), ascending.

    Example:
        >>> offset_rows(groups=2, points=1).tolist()
        [0, 1, 3, 4]
    """
    starts = torch.arange(groups).unsqueeze(1) * 3 * points
    return (starts + torch.arange(2 * points)).flatten()


def pack(offsets: Tensor, masks: Tensor) -> Tensor:
    """Packs separate offsets and masks into one ``offset_mask``.

    Args:
        offsets: (N, H_out, W_out, G, K, 2), the last axis being (x, y) in pixels.
        masks: (N, H_out, W_out, G, K).

    Returns:
        (N, H_out, W_out, M) with M = 3 * G * K rounded up to a multiple of 8, padded with zeros.
    """
    groups, points = masks.shape[-2:]
    rows = torch.cat([offsets.flatten(-2), masks], dim=-1).flatten(-2)
    padding = offset_mask_channels(groups, points) - rows.shape[-1]
    return torch.nn.functional.pad(rows, (0, padding))


def unpack(offset_mask: Tensor, groups: int, points: int) -> tuple[Tensor, Tensor]:
    """Splits ``offset_mask`` into offsets and masks; the inverse of :func:`pack`.

    Args:
        offset_mask: (N, H_out, W_out, M) with M >= 3 * G * K.
        groups: Number of groups ``G``.
        points: Number of sampling points ``K``.

    Returns:
        Offsets (N, H_out, W_out, G, K, 2), the last axis being (x, y) in pixels, and masks
        (N, H_out, W_out, G, K). Both are views.
    """
    rows = offset_mask[..., : 3 * groups * points].unflatten(-1, (groups, 3 * points))
    return rows[..., : 2 * points].unflatten(-1, (points, 2)), rows[..., 2 * points :]
