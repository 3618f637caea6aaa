"""Deformable convolution, v1 and v2, of ``mmcv._ext`` on torchvision's kernels."""

import math

import torch
import torchvision  # noqa: F401  (defines torch.ops.torchvision)
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]


def deform_conv_forward(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **settings: int,
) -> None:
    """Deformable convolution (v1), without bias."""
    output.copy_(_deform_conv(x, weight, offset, None, None, _geometry_v1(**settings)))


def deform_conv_backward_input(
    x: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_x: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Gradients of deformable convolution (v1) by input and offsets."""
    gradients = _deform_conv_backward(
        grad_output, x, weight, offset, None, None, _geometry_v1(**settings)
    )
    grad_x.copy_(gradients[0])
    grad_offset.copy_(gradients[2])
    # mmcv requests the weight's gradient next, with the same buffer; torchvision has computed it.
    columns.resize_(weight.shape).copy_(gradients[1])


def deform_conv_backward_parameters(
    x: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **settings: int,
) -> None:
    """Gradient of deformable convolution (v1) by its weight, added to ``grad_weight``."""
    if columns.numel() == 0:
        weight = torch.zeros_like(grad_weight)
        gradient = _deform_conv_backward(
            grad_output, x, weight, offset, None, None, _geometry_v1(**settings)
        )[1].to(grad_weight.dtype)
    else:
        gradient = columns.clone()
        columns.resize_(0)
    grad_weight.add_(gradient, alpha=scale)


def modulated_deform_conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Deformable convolution with modulation (v2)."""
    geometry = _geometry_v2(**settings)
    offset, mask = (_first_of_larger(tensor, output.shape[2:]) for tensor in (offset, mask))
    output.copy_(_deform_conv(x, weight, offset, mask, bias if with_bias else None, geometry))


def modulated_deform_conv_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_x: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Gradients of deformable convolution with modulation (v2)."""
    geometry = _geometry_v2(**settings)
    offset, mask = (_first_of_larger(tensor, grad_output.shape[2:]) for tensor in (offset, mask))
    by_x, by_weight, by_offset, by_mask, by_bias = _deform_conv_backward(
        grad_output, x, weight, offset, mask, bias if with_bias else None, geometry
    )
    grad_x.copy_(by_x)
    grad_weight.copy_(by_weight)
    for target, gradient in ((grad_offset, by_offset), (grad_mask, by_mask)):
        rest = target[0].numel() - gradient[0].numel()
        target.copy_(pad(gradient.flatten(1), (0, rest)).view(target.shape))
    if with_bias:
        grad_bias.copy_(by_bias)


def _first_of_larger(tensor: Tensor, sides: tuple[int, int]) -> Tensor:
    """The elements that mmcv reads of offsets or mask (N, C, H, W) larger than the output.

    It reads the first C * H * W elements of an image, whatever their location. DyHead calls it this
    way, and its released weights were trained with it.
    """
    if tensor.shape[2:] == sides:
        return tensor
    shape = (tensor.shape[1], *sides)
    if tensor[0].numel() < math.prod(shape):
        raise ValueError(
            f"modulated_deform_conv: expected offset and mask of the output's size {tuple(sides)}, "
            f"got {tuple(tensor.shape[2:])}"
        )
    return tensor.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)


def _geometry_v1(
    *,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> tuple[int, ...]:
    """torchvision's order of mmcv's settings; ``im2col_step`` does not change the result."""
    return dH, dW, padH, padW, dilationH, dilationW, group, deformable_group


def _geometry_v2(
    *,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
) -> tuple[int, ...]:
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def _deform_conv_tensors(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """torchvision's arguments in one dtype, with placeholders for absent mask and bias."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    mask = x.new_zeros(len(x), 1) if mask is None else mask
    bias = x.new_zeros(len(weight)) if bias is None else bias
    return tuple(tensor.to(dtype) for tensor in (x, weight, offset, mask, bias))


def _deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> Tensor:
    tensors = _deform_conv_tensors(x, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None)


def _deform_conv_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Gradients by input, weight, offset, mask and bias."""
    tensors = _deform_conv_tensors(x, weight, offset, mask, bias)
    gradients = torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(tensors[0].dtype), *tensors, *geometry, mask is not None
    )
    border = _one_pixel_outside(tensors[2], weight.shape[2:], geometry)
    gradients[2].masked_fill_(border, 0.0)
    return gradients


def _one_pixel_outside(
    offset: Tensor, kernel_size: tuple[int, int], geometry: tuple[int, ...]
) -> Tensor:
    """Which offsets (N, 2 * G * K, H, W) move a sample to a coordinate of exactly -1.

    A sample rises from 0 there. mmcv takes the derivative from outside, torchvision from inside;
    with zero offsets, as a layer starts, and padding the whole border of the image is affected.
    """
    starts = []
    for axis, length in enumerate(offset.shape[2:]):
        stride, padding, dilation = geometry[axis:6:2]
        outputs = torch.arange(length, device=offset.device) * stride - padding
        taps = torch.arange(kernel_size[axis], device=offset.device) * dilation
        starts.append(taps[:, None] + outputs)
    rows, columns = starts
    locations = offset.unflatten(1, (-1, *kernel_size, 2))
    outside = (locations[:, :, :, :, 0] + rows[:, None, :, None] == -1) | (
        locations[:, :, :, :, 1] + columns[None, :, None] == -1
    )
    return outside.unsqueeze(4).expand_as(locations).reshape(offset.shape)
