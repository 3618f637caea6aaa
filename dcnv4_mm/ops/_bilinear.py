"""Bilinear sampling in plain PyTorch, one corner at a time; shared by the operators' references."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FLOPS_PER_SAMPLE", "Corner", "accumulation_dtype", "corners", "gather"]

# A sampling point multiplies and adds four corners: 2 * 4 operations per channel. The few dozen
# operations of its coordinates, which do not grow with the channels, are not counted.
FLOPS_PER_SAMPLE = 8


class Corner(NamedTuple):
    """One of the four pixels around a sampling point; every field is (N, Q, G) for Q points."""

    pixel: Tensor  # int64 index in the flattened image
    valid: Tensor  # bool: the point counts and the pixel is in the image
    weight: Tensor  # bilinear weight, and its derivatives by the point's row and column
    weight_dy: Tensor
    weight_dx: Tensor


def corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[Corner]:
    """Yields the four corners of sampling points at row ``y`` and column ``x``, in pixels."""
    # The border test is strict, and false for NaN: a point exactly at -1 has no derivative.
    counts = (y > -1) & (x > -1) & (y < height) & (x < width)
    y, x = torch.where(counts, y, 0.0), torch.where(counts, x, 0.0)
    top, left = y.floor(), x.floor()
    fraction_y, fraction_x = y - top, x - left
    for corner_y in (0, 1):
        for corner_x in (0, 1):
            row, column = top + corner_y, left + corner_x
            valid = counts & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            weight_y = fraction_y if corner_y else 1 - fraction_y
            weight_x = fraction_x if corner_x else 1 - fraction_x
            yield Corner(
                pixel=pixel.long(),
                valid=valid,
                weight=weight_y * weight_x,
                weight_dy=weight_x if corner_y else -weight_x,
                weight_dx=weight_y if corner_x else -weight_y,
            )


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which tensors of a storage dtype are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gather(pixels: Tensor, corner: Corner) -> Tensor:
    """Reads one corner of every point from pixels [N, H * W, G, D]; 0 outside the image."""
    index = corner.pixel.unsqueeze(-1).expand(*corner.pixel.shape, pixels.shape[-1])
    return torch.where(corner.valid.unsqueeze(-1), pixels.gather(1, index), 0.0)
