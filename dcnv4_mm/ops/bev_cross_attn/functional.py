"""The public function: checks, autocast and differentiation around the raw operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcnv4_mm.ops._autocast import autocast_dtype
from dcnv4_mm.ops._bilinear import accumulation_dtype
from dcnv4_mm.ops._checks import check_dense, check_floating
from dcnv4_mm.ops._extension import load_library
from dcnv4_mm.ops.arguments import read_int
from dcnv4_mm.ops.bev_cross_attn import flops  # noqa: F401  (registers the formulas)
from dcnv4_mm.ops.bev_cross_attn.registration import bev_cross_attn_raw
from dcnv4_mm.ops.flash_deform_attn.layout import num_pixels, read_spatial_shapes

__all__ = ["bev_cross_attn"]

for _device_type in ("cpu", "cuda"):
    load_library(_device_type)


def bev_cross_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
    *,
    num_points: int,
) -> Tensor:
    """Deformable attention of BEV queries to the cameras that see them.

    A query is a pillar of points, which lie in the images or outside of them. In every camera that
    sees it, each head samples ``num_points`` locations on each level and sums the samples, weighted
    by the softmax of the logits over all locations of all levels. Point ``p`` of a level lies at

        reference point p mod num_pillar_points * (W_l, H_l) + offset

    in pixels of the level, 0 being the outer edge of the first one. The result is the mean over
    the cameras that see the query, and 0 for one that no camera sees. Offsets and logits are
    those of the query, the same in every camera.

    A point on or beyond half a pixel outside its level contributes nothing and has no gradient,
    neither has one that is not finite; it keeps its weight in the softmax. What belongs to a query
    and a camera that does not see it is not read.

    All four floating-point types work, on every device; softmax, positions and sums are float32
    (float64 for float64). Under autocast ``value`` is cast to the autocast type, float32 offsets
    and logits stay as they are.

    Args:
        value: (batch, num_cameras, num_keys, num_heads, head_dims) float64, float32, float16 or
            bfloat16: the pixels of all levels of a camera one after the other. It is copied unless
            the pixels of all samples and cameras are equally far apart.
        spatial_shapes: (H, W) for every level, the same in all cameras, or a (num_levels, 2)
            integer tensor. A tensor on a GPU is read once per call, which waits for the device;
            pairs of ints avoid that.
        offsets_logits: (batch, num_queries, num_heads, 3 * num_levels * num_points) in the dtype of
            ``value``, or float32 beside a 16-bit ``value``. Packed as locations and logits are in
            :mod:`dcnv4_mm.ops.flash_deform_attn.layout`, but with offsets (x, y) in pixels.
        reference_points: (batch, num_cameras, num_queries, num_pillar_points, 2) float32, or
            float64 beside a float64 ``value``: the points (x, y) of a query's pillar in units of a
            camera's image, 0 to 1 from edge to edge.
        bev_mask: (batch, num_cameras, num_queries) bool: whether a camera sees a query.
        num_points: Number of points per level.

    Returns:
        (batch, num_queries, num_heads * head_dims), contiguous, in the dtype of ``value`` (under
        autocast, the autocast type).

    Raises:
        TypeError: A dtype is not supported or does not fit the others.
        ValueError: A shape, a device or an argument does not fit, or the reference points require a
            gradient; the message says what does.

    Note:
        Differentiable with respect to ``value`` and ``offsets_logits``; see docs/ops.md for
        second derivatives, forward mode and ``torch.func``.

    Source:
        Li et al., "BEVFormer", ECCV 2022, section 3.3, without the projections.

    Example:
        >>> value = torch.randn(1, 6, 8 * 8 + 4 * 4, 4, 16)
        >>> offsets_logits = torch.randn(1, 100, 4, 3 * 2 * 8)  # 2 levels * 8 points * 3
        >>> reference_points = torch.rand(1, 6, 100, 4, 2)  # 4 points of each pillar
        >>> bev_mask = torch.rand(1, 6, 100) < 0.2
        >>> shapes = [(8, 8), (4, 4)]
        >>> tensors = offsets_logits, reference_points, bev_mask
        >>> bev_cross_attn(value, shapes, *tensors, num_points=8).shape
        torch.Size([1, 100, 64])
    """
    level_sizes = read_spatial_shapes(spatial_shapes)
    _check_value(value, level_sizes)
    num_points = read_int("num_points", num_points, minimum=1)
    check_floating("offsets_logits", offsets_logits)
    check_dense("reference_points", reference_points)
    check_dense("bev_mask", bev_mask)
    batch, cameras, _, heads, _ = value.shape
    queries = offsets_logits.shape[1] if offsets_logits.dim() == 4 else 0
    per_head = 3 * (len(level_sizes) // 2) * num_points
    shape: tuple[int, ...] = (batch, queries, heads, per_head)
    axes = "(batch, num_queries, num_heads, 3 * num_levels * num_points)"
    _check_beside("offsets_logits", offsets_logits, axes, shape, value)
    pillar = reference_points.shape[3] if reference_points.dim() == 5 else 1
    if pillar < 1:
        raise ValueError("reference_points must have at least one point of each pillar, got none")
    shape = (batch, cameras, queries, pillar, 2)
    axes = "(batch, num_cameras, num_queries, num_pillar_points, 2)"
    _check_beside("reference_points", reference_points, axes, shape, value)
    axes = "(batch, num_cameras, num_queries)"
    _check_beside("bev_mask", bev_mask, axes, (batch, cameras, queries), value)
    if bev_mask.dtype != torch.bool:
        raise TypeError(f"bev_mask must be bool, got {bev_mask.dtype}")
    if reference_points.requires_grad:
        raise ValueError("reference_points have no gradient: pass reference_points.detach()")
    value, offsets_logits, reference_points = _fitting(value, offsets_logits, reference_points)
    return bev_cross_attn_raw(
        value, offsets_logits, reference_points, bev_mask, level_sizes, num_points
    )


def _fitting(
    value: Tensor, offsets_logits: Tensor, reference_points: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Brings the tensors to dtypes that the raw operator takes."""
    autocast = autocast_dtype(value)
    if autocast is not None:
        value = value.to(autocast)
    accepted = {value.dtype}
    if value.dtype.itemsize == 2:
        accepted |= {torch.float32, torch.float16, torch.bfloat16} if autocast else {torch.float32}
    if offsets_logits.dtype not in accepted:
        raise TypeError(
            "offsets_logits must have the dtype of value, or float32 beside a 16-bit value, got "
            f"{offsets_logits.dtype} beside {value.dtype}: convert one with .to()"
        )
    if offsets_logits.dtype != value.dtype:
        offsets_logits = offsets_logits.float()
    wide = accumulation_dtype(value.dtype)
    if reference_points.dtype not in (torch.float32, wide):
        raise TypeError(
            "reference_points must be float32, or float64 beside a float64 value, got "
            f"{reference_points.dtype} beside {value.dtype}: convert them with .to()"
        )
    return value, offsets_logits, reference_points.to(wide)


def _check_value(value: Tensor, level_sizes: list[int]) -> None:
    check_floating("value", value)
    if value.dim() != 5:
        raise ValueError(
            "value must have five axes (batch, num_cameras, num_keys, num_heads, head_dims), got "
            f"the shape {tuple(value.shape)}"
        )
    _, cameras, pixels, heads, channels = value.shape
    if cameras < 1 or heads < 1 or channels < 1:
        raise ValueError(
            "value must have at least one camera, head and channel, got "
            f"{cameras}, {heads}, {channels}"
        )
    if pixels != num_pixels(level_sizes):
        sizes = list(zip(level_sizes[::2], level_sizes[1::2], strict=True))
        raise ValueError(
            f"value must have one row for every pixel of the levels {sizes}, "
            f"{num_pixels(level_sizes)} rows, got {pixels}"
        )


def _check_beside(
    name: str, tensor: Tensor, axes: str, shape: tuple[int, ...], value: Tensor
) -> None:
    """Checks the shape and the device of a tensor that goes with value."""
    if tensor.dim() != len(shape):
        raise ValueError(f"{name} must have the axes {axes}, got the shape {tuple(tensor.shape)}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have the shape {axes} = {shape}, got {tuple(tensor.shape)}")
    if tensor.device != value.device:
        raise ValueError(
            f"value and {name} must be on one device, got {value.device} and {tensor.device}: "
            "move one with .to()"
        )
