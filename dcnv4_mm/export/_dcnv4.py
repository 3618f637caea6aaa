"""DCNv4 as standard PyTorch operators, for exported models."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dcnv4_mm.ops.dcnv4.layout import num_points, unpack

__all__ = ["dcnv4_forward_portable"]


def dcnv4_forward_portable(
    value: Tensor,
    offset_mask: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    fast: bool = False,
) -> Tensor:
    """Computes DCNv4 by one ``grid_sample`` of all points, which keeps the graph small.

    Args:
        value: Input (N, H, W, C).
        offset_mask: Offsets and masks (N, H_out, W_out, M), in the layout of
            :func:`~dcnv4_mm.ops.functional.dcnv4`; every offset must be finite.
        kernel_size: (rows, columns).
        stride: (rows, columns).
        padding: (rows, columns).
        dilation: (rows, columns).
        groups: Number of groups G.
        offset_scale: Factor of the offsets.
        remove_center: Whether the kernel has no central point.
        fast: Ignored.

    Returns:
        (N, H_out, W_out, C), contiguous, in the dtype of ``value``.
    """
    batch, height, width, channels = value.shape
    height_out, width_out = offset_mask.shape[1:3]
    dtype, device = torch.promote_types(value.dtype, torch.float32), value.device
    points = num_points((kernel_size[0], kernel_size[1]), remove_center)
    # [N, H_out, W_out, G, K, 2] and [N, H_out, W_out, G, K]
    offsets, masks = unpack(offset_mask.to(dtype), groups, points)

    k = torch.arange(points, device=device)
    if remove_center:
        k = k + (k >= kernel_size[1] // 2 * kernel_size[0] + kernel_size[0] // 2)
    # Rows and columns of the kernel, [K], and of the output, [H_out, 1, 1, 1] and [W_out, 1, 1].
    kernel = k % kernel_size[0], k // kernel_size[0]
    output = (
        torch.arange(height_out, device=device).view(-1, 1, 1, 1),
        torch.arange(width_out, device=device).view(-1, 1, 1),
    )
    coordinates = []
    for axis, size in ((1, width), (0, height)):
        center = dilation[axis] * (kernel_size[axis] - 1) // 2
        grid = (kernel[axis] * dilation[axis] - center).to(dtype)
        base = (output[axis] * stride[axis] + (center - padding[axis])).to(dtype)
        pixel = base + (grid + offsets[..., 1 - axis]) * offset_scale
        # grid_sample's coordinates run from -1 to 1, from edge to edge.
        coordinates.append((2 * pixel + 1) / size - 1)
    # [N * G, H_out * W_out, K, 2]
    locations = torch.stack(coordinates, -1).permute(0, 3, 1, 2, 4, 5).flatten(2, 3).flatten(0, 1)
    # [N * G, D, H, W], and at the points [N * G, D, H_out * W_out, K]
    images = value.to(dtype).unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    samples = grid_sample(images, locations, padding_mode="zeros", align_corners=False)
    # [N * G, 1, H_out * W_out, K]
    masks = masks.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1).unsqueeze(1)
    sums = (samples * masks).sum(-1)
    sums = sums.view(batch, groups, channels // groups, height_out, width_out)
    return sums.permute(0, 3, 4, 1, 2).flatten(3).to(value.dtype).contiguous()
