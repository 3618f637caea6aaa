"""Layout of levels, sampling locations and attention logits in their tensors.

The pixels of all levels follow one another in one axis of length num_keys = sum(H_l * W_l), in the
order of the levels. A location is ``(x, y)``, width before height, in units of its level: 0 is the
left edge of the first pixel, 1 the right edge of the last. In pixels that is ``x * W_l - 0.5``.

Packed, a head of a query has ``3 * num_levels * num_points`` elements: first all pairs ``(x, y)``,
then all logits; both run over levels first, point ``p`` of level ``l`` being
``l * num_points + p``.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "check_spatial_shapes",
    "num_pixels",
    "pack",
    "read_spatial_shapes",
    "sampling_locations",
    "unpack",
]


def read_spatial_shapes(spatial_shapes: Sequence[tuple[int, int]] | Tensor) -> list[int]:
    """Reads the sizes of all levels as the raw operators take them.

    Args:
        spatial_shapes: (H, W) for every level, or a (num_levels, 2) integer tensor. Reading a
            tensor on a GPU waits for the device.

    Returns:
        [H_0, W_0, H_1, W_1, ...].

    Raises:
        TypeError: A size is not an int.
        ValueError: There is no level, a level has no pixel, or a size is not a pair.

    Example:
        >>> read_spatial_shapes([(4, 6), (2, 3)])
        [4, 6, 2, 3]
    """
    if isinstance(spatial_shapes, Tensor):
        check_spatial_shapes(spatial_shapes)
        spatial_shapes = spatial_shapes.tolist()
    sizes = []
    for shape in spatial_shapes:
        height, width = _read_pair(shape)
        if height < 1 or width < 1:
            raise ValueError(
                f"every level must have at least one row and column, got {height} x {width} in "
                "spatial_shapes"
            )
        sizes += [height, width]
    if not sizes:
        raise ValueError("spatial_shapes must have at least one level, got none")
    return sizes


def check_spatial_shapes(spatial_shapes: Tensor) -> None:
    """Refuses what cannot hold the sizes of levels, without reading it.

    Raises:
        TypeError: The tensor is no matrix, or not one of integers.
    """
    if spatial_shapes.is_floating_point() or spatial_shapes.dim() != 2:
        raise TypeError(
            "spatial_shapes must be (H, W) for every level or an (L, 2) integer tensor, got a "
            f"tensor of shape {tuple(spatial_shapes.shape)} and type {spatial_shapes.dtype}"
        )


def _read_pair(shape: Sequence[int]) -> tuple[int, int]:
    try:
        # An int may be a symbol while a graph is recorded, and operator.index would fix its value.
        height, width = (
            number if isinstance(number, (int, torch.SymInt)) else operator.index(number)
            for number in shape
        )
    except TypeError as error:
        raise TypeError(
            f"spatial_shapes must hold a pair of ints (H, W) for every level, got {shape!r}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"spatial_shapes must hold a pair (H, W) for every level, got {shape!r}"
        ) from error
    return height, width


def num_pixels(level_sizes: list[int]) -> int:
    """Number of pixels of all levels [H_0, W_0, H_1, W_1, ...] together."""
    return sum(
        height * width for height, width in zip(level_sizes[::2], level_sizes[1::2], strict=True)
    )


def pack(locations: Tensor, logits: Tensor) -> Tensor:
    """Packs separate locations and logits into one tensor.

    Args:
        locations: (batch, num_queries, num_heads, num_levels, num_points, 2), the last axis being
            (x, y).
        logits: (batch, num_queries, num_heads, num_levels, num_points).

    Returns:
        (batch, num_queries, num_heads, 3 * num_levels * num_points), in the wider of the two
        dtypes.
    """
    return torch.cat([locations.flatten(-3), logits.flatten(-2)], dim=-1)


def unpack(locations_logits: Tensor, levels: int, num_points: int) -> tuple[Tensor, Tensor]:
    """Splits what :func:`pack` has packed; both results are views.

    Args:
        locations_logits: (batch, num_queries, num_heads, 3 * num_levels * num_points).
        levels: Number of levels.
        num_points: Number of points per level.

    Returns:
        Locations (batch, num_queries, num_heads, num_levels, num_points, 2) and logits (batch,
        num_queries, num_heads, num_levels, num_points).
    """
    points = levels * num_points
    locations = locations_logits[..., : 2 * points].unflatten(-1, (levels, num_points, 2))
    logits = locations_logits[..., 2 * points : 3 * points].unflatten(-1, (levels, num_points))
    return locations, logits


def sampling_locations(
    reference_points: Tensor, offsets: Tensor, spatial_shapes: Sequence[tuple[int, int]] | Tensor
) -> Tensor:
    """Adds offsets to the reference points of queries.

    Args:
        reference_points: (batch, num_queries, num_levels, 2), points (x, y); or (batch,
            num_queries, num_levels, 4), boxes (center x, center y, width, height). Both in units of
            the image, 0 to 1.
        offsets: (batch, num_queries, num_heads, num_levels, num_points, 2). Around points they are
            in pixels of the level, around boxes in halves of the box, ``num_points`` of which are
            half the width or height.
        spatial_shapes: (H, W) for every level, or a (num_levels, 2) integer tensor.

    Returns:
        (batch, num_queries, num_heads, num_levels, num_points, 2) locations (x, y).

    Raises:
        ValueError: The last dim of the reference points is neither 2 nor 4.
    """
    reference_points = reference_points[:, :, None, :, None]
    if reference_points.shape[-1] == 2:
        if isinstance(spatial_shapes, Tensor):
            shapes = spatial_shapes.to(offsets.device)
        else:
            # While a graph is recorded an int may be a symbol, whose value as_tensor would fix.
            sizes = read_spatial_shapes(spatial_shapes)
            shapes = torch.tensor(sizes, device=offsets.device).view(-1, 2)
        # [L, 1, 2]: width and height of every level.
        return reference_points + offsets / shapes.flip(-1).unsqueeze(-2)
    if reference_points.shape[-1] == 4:
        centers, sizes = reference_points.split(2, dim=-1)
        return centers + offsets / offsets.shape[-2] * sizes * 0.5
    raise ValueError(
        "the last axis of reference_points must have 2 numbers (x, y) or 4 (x, y, width, height), "
        f"got {reference_points.shape[-1]}"
    )
