"""DCNv4 in plain PyTorch: the meaning of the operator, and its kernel where no other is built.

Clarity comes first here: one sampling point and one corner at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dcnv4_mm.ops._bilinear import accumulation_dtype, corners, gather
from dcnv4_mm.ops.dcnv4.layout import kernel_points, num_points, output_size, unpack

__all__ = ["dcnv4_backward_reference", "dcnv4_forward_reference"]


def _sampling_points(
    offset_mask: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields row and column in pixels and the mask of every point, each (N, H_out * W_out, G)."""
    rows, columns = kernel_size
    offsets, masks = unpack(offset_mask, groups, num_points((rows, columns), remove_center))
    # The kernel's extent to the left of its center; offset_scale stretches the grid around it.
    center_y, center_x = (dilation[0] * (rows - 1)) // 2, (dilation[1] * (columns - 1)) // 2
    height_out, width_out = offset_mask.shape[1:3]
    # [H_out, 1, 1] and [W_out, 1]: the kernel's center for every output pixel.
    base_y = torch.arange(height_out, device=offset_mask.device).view(-1, 1, 1)
    base_x = torch.arange(width_out, device=offset_mask.device).view(-1, 1)
    base_y = base_y * stride[0] + (center_y - padding[0])
    base_x = base_x * stride[1] + (center_x - padding[1])
    for k, (row, column) in enumerate(kernel_points((rows, columns), remove_center)):
        offset_x, offset_y = offsets[..., k, 0], offsets[..., k, 1]
        y = base_y + (row * dilation[0] - center_y + offset_y) * offset_scale
        x = base_x + (column * dilation[1] - center_x + offset_x) * offset_scale
        yield y.flatten(1, 2), x.flatten(1, 2), masks[..., k].flatten(1, 2)


def dcnv4_forward_reference(
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
    """Computes DCNv4 as the raw operator ``dcnv4_mm::dcnv4_forward`` does, on any device.

    Args:
        value: (N, H, W, C), floating point.
        offset_mask: (N, H_out, W_out, M) in the layout of :mod:`dcnv4_mm.ops.dcnv4.layout`.
        kernel_size: Rows and columns; so are ``stride``, ``padding`` and ``dilation``.
        stride: Step between output pixels, in input pixels.
        padding: Rows and columns by which the kernel may reach over the border.
        dilation: Distance of the kernel's points, in pixels.
        groups: Number of groups ``G``, a divisor of C.
        offset_scale: Factor on grid and learned offsets.
        remove_center: Whether the kernel's middle point is left out.
        fast: Ignored: the reference always sums in float32, or float64 for float64.

    Returns:
        (N, H_out, W_out, C), contiguous, in the dtype of ``value``.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, equation (1) without softmax.
    """
    batch, height, width, channels = value.shape
    dtype = accumulation_dtype(value.dtype)
    pixels = value.to(dtype).reshape(batch, height * width, groups, channels // groups)
    size = output_size((height, width), kernel_size, stride, padding, dilation)  # type: ignore[arg-type]
    output = pixels.new_zeros(batch, size[0] * size[1], groups, channels // groups)
    geometry = (kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    for y, x, mask in _sampling_points(offset_mask.to(dtype), *geometry):
        for corner in corners(y, x, height, width):
            # The mask is left out where it does not count, so that one that is not finite gives
            # no derivative either.
            weight = corner.weight * torch.where(corner.valid, mask, 0.0)
            output = output + weight.unsqueeze(-1) * gather(pixels, corner)
    return output.reshape(batch, *size, channels).to(value.dtype)


def dcnv4_backward_reference(
    grad_output: Tensor,
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
    deterministic: bool = True,
    need_value_grad: bool = True,
    need_offset_mask_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of DCNv4 as ``dcnv4_mm::dcnv4_backward`` does, on any device.

    The bilinear weights have the one-sided derivative of ``floor``: towards the larger coordinate.

    ``grad_output`` is the gradient of the output; the arguments from ``value`` to ``fast`` are
    those of :func:`dcnv4_forward_reference`. ``deterministic`` is ignored: ``scatter_add_``
    follows torch's own global setting.

    Returns:
        Gradients of ``value`` and ``offset_mask`` in their shapes and dtypes; one that is not
        needed is an empty tensor of shape (0,).
    """
    batch, height, width, channels = value.shape
    dtype = accumulation_dtype(value.dtype)
    pixels = value.to(dtype).reshape(batch, height * width, groups, channels // groups)
    grad = grad_output.to(dtype).flatten(1, 2).unflatten(-1, (groups, channels // groups))
    grad_pixels = torch.zeros_like(pixels)
    grad_offsets, grad_masks = [], []
    geometry = (kernel_size, stride, padding, dilation, groups, offset_scale, remove_center)
    for y, x, mask in _sampling_points(offset_mask.to(dtype), *geometry):
        grad_y, grad_x, grad_mask = torch.zeros_like(y), torch.zeros_like(y), torch.zeros_like(y)
        for corner in corners(y, x, height, width):
            if need_value_grad:
                weight = torch.where(corner.valid, corner.weight * mask, 0.0).unsqueeze(-1)
                index = corner.pixel.unsqueeze(-1).expand_as(grad)
                grad_pixels = grad_pixels.scatter_add(1, index, weight * grad)
            if need_offset_mask_grad:
                # [N, H_out * W_out, G]: the gradient of the output times this pixel.
                dot = (gather(pixels, corner) * grad).sum(-1)
                masked = torch.where(corner.valid, mask * dot * offset_scale, 0.0)
                grad_y = grad_y + masked * corner.weight_dy
                grad_x = grad_x + masked * corner.weight_dx
                grad_mask = grad_mask + torch.where(corner.valid, dot * corner.weight, 0.0)
        grad_offsets += [grad_x, grad_y]
        grad_masks.append(grad_mask)
    grad_value = grad_pixels.reshape(value.shape) if need_value_grad else pixels.new_empty(0)
    if need_offset_mask_grad:
        rows = torch.stack(grad_offsets + grad_masks, dim=-1).flatten(-2)
        rows = torch.nn.functional.pad(rows, (0, offset_mask.shape[-1] - rows.shape[-1]))
        grad_offset_mask = rows.reshape(offset_mask.shape)
    else:
        grad_offset_mask = pixels.new_empty(0)
    return grad_value.to(value.dtype), grad_offset_mask.to(offset_mask.dtype)
