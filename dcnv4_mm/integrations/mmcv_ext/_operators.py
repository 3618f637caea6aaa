"""Box, attention and focal loss operators of ``mmcv._ext``, and the table of all operators.

The arguments are mmcv's. As there, an operator that returns nothing fills the tensors that it is
given for its results. Other than with mmcv 2.1.0, inputs may have any strides, and 16-bit inputs,
bfloat16 too, are computed in float32 and rounded once. All work on the CPU and on CUDA.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torchvision  # noqa: F401  (defines torch.ops.torchvision)
from torch import Tensor

from dcnv4_mm.integrations.mmcv_ext import _deform_conv, _rotated
from dcnv4_mm.ops.functional import ms_deform_attn

__all__ = ["OPERATORS"]

# The smallest argument of the logarithm in mmcv's focal losses, also in float64.
_TINY = torch.finfo(torch.float32).tiny


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression; returns the kept indices by descending score.

    ``offset`` is what a box's sides are longer than the difference of its corners, 0 or 1.
    """
    # mmcv compares with a float32 threshold: float32 0.6 is above 0.6, and not above itself.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    if offset:
        bboxes = torch.cat((bboxes[:, :2], bboxes[:, 2:] + offset), dim=1)
    return torch.ops.torchvision.nms(bboxes, scores, threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS: lowers the scores of overlapping boxes; ``dets`` (N, 5) gets boxes and scores.

    ``method`` is 0 (drop the box), 1 (linear) or 2 (Gaussian). Returns the kept indices in the
    order of ``dets``, whose later rows stay as they were.
    """
    boxes, scores = boxes.clone(), scores.clone()
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1)
    order = torch.arange(len(boxes))
    kept = 0
    while kept < len(order):
        best = kept + int(scores[order[kept:]].argmax())
        order[[kept, best]] = order[[best, kept]]
        first, rest = order[kept], order[kept + 1 :]
        dets[kept, :4], dets[kept, 4] = boxes[first], scores[first]
        kept += 1

        corners = torch.maximum(boxes[first, :2], boxes[rest, :2])
        sides = (torch.minimum(boxes[first, 2:], boxes[rest, 2:]) - corners + offset).clamp(min=0)
        overlap = sides.prod(dim=1)
        iou = overlap / (areas[first] + areas[rest] - overlap)
        if method == 2:
            scores[rest] *= torch.exp(-(iou * iou) / sigma)
        else:
            scores[rest] *= torch.where(iou >= iou_threshold, (1 - iou) * method, 1.0)
        # mmcv moves the last box to where it discards one; the order decides between equals.
        alive = ~(scores[rest] < min_score)
        count = int(alive.sum())
        head, tail = rest[:count], rest[count:]
        head[~alive[:count]] = tail[alive[count:]].flip(0)
        order = order[: kept + count]
    return order


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign: average of bilinear samples for boxes (R, 5) of (index, x1, y1, x2, y2)."""
    _check_pool_mode(pool_mode)
    if rois.device.type == "cpu":
        _check_rois(rois, len(features), aligned)
    dtype = torch.promote_types(features.dtype, torch.float32)
    pooled = torch.ops.torchvision.roi_align(
        features.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of RoIAlign by its input."""
    _check_pool_mode(pool_mode)
    dtype = torch.promote_types(grad_output.dtype, torch.float32)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "roi_align: expected pool_mode='avg', got 'max', which needs compiled mmcv"
        )


def _check_rois(rois: Tensor, batch: int, aligned: bool) -> None:
    """Raises where mmcv does, and where it would read beyond the batch."""
    # On CUDA neither this nor mmcv checks it, which would synchronize with the device.
    if aligned and not (rois[:, 3:] >= rois[:, 1:3]).all():
        raise ValueError("roi_align: expected boxes with x2 >= x1 and y2 >= y1")
    if not ((rois[:, 0] >= 0) & (rois[:, 0] < batch)).all():
        raise ValueError(f"roi_align: expected batch indices from 0 to {batch - 1} in rois[:, 0]")


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention; ``im2col_step`` does not change the result."""
    sizes = _level_sizes(spatial_shapes, level_start_index)
    return ms_deform_attn(value, sizes, sampling_loc, attn_weight)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of multi-scale deformable attention by value, locations and weights."""
    sizes = _level_sizes(spatial_shapes, level_start_index)
    gradients = torch.ops.dcnv4_mm.ms_deform_attn_backward(
        grad_output,
        value,
        sampling_loc,
        attn_weight,
        [side for size in sizes for side in size],
        torch.are_deterministic_algorithms_enabled(),
        True,
        True,
    )
    targets = (grad_value, grad_sampling_loc, grad_attn_weight)
    for target, gradient in zip(targets, gradients, strict=True):
        target.copy_(gradient)


def _level_sizes(spatial_shapes: Tensor, level_start_index: Tensor) -> list[tuple[int, int]]:
    """Sizes of the levels, which must follow each other as their start indices say."""
    # One copy from the device instead of two.
    table = torch.cat((spatial_shapes, level_start_index[:, None].to(spatial_shapes)), dim=1)
    start, sizes = 0, []
    for height, width, index in table.tolist():
        if index != start:
            raise ValueError(
                "level_start_index: expected every level to start where the one before ends, "
                f"got {level_start_index.tolist()} for the sizes {spatial_shapes.tolist()}"
            )
        start += height * width
        sizes.append((height, width))
    return sizes


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of logits (N, C) for targets (N,), where C is the background."""
    positive, factor = _focal_targets(logits, target, weight, alpha)
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    q = 1 - p
    loss = torch.where(
        positive, q**gamma * p.clamp(min=_TINY).log(), p**gamma * q.clamp(min=_TINY).log()
    )
    output.copy_(-factor * loss)


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of every element of the focal loss by its logit."""
    positive, factor = _focal_targets(logits, target, weight, alpha)
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    q = 1 - p
    slope = torch.where(
        positive,
        q**gamma * (q - gamma * p * p.clamp(min=_TINY).log()),
        p**gamma * (gamma * q * q.clamp(min=_TINY).log() - p),
    )
    grad_input.copy_(-factor * slope)


def _focal_targets(
    logits: Tensor, target: Tensor, weight: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """Which elements are positive (N, C), and the factor of every element."""
    classes = logits.shape[1]
    # Class weights have no entry for the background; mmcv reads beyond their end.
    largest = classes - 1 if len(weight) else classes
    if len(target) and int(target.max()) > largest:
        raise ValueError(
            f"sigmoid_focal_loss: expected targets up to {largest}, got {int(target.max())}"
        )
    positive = target[:, None] == torch.arange(classes, device=target.device)
    factor = torch.where(positive, alpha, 1 - alpha)
    if len(weight):
        factor = factor * weight.index_select(0, target)[:, None]
    return positive, factor


def _as_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function without autocast and autograd, as mmcv's compiled functions run."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.no_grad(), torch.autocast(next(tensors).device.type, enabled=False):
            return function(*args, **kwargs)

    return call


OPERATORS = {
    function.__name__: _as_kernel(function)
    for function in (
        nms,
        softnms,
        roi_align_forward,
        roi_align_backward,
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        _deform_conv.deform_conv_forward,
        _deform_conv.deform_conv_backward_input,
        _deform_conv.deform_conv_backward_parameters,
        _deform_conv.modulated_deform_conv_forward,
        _deform_conv.modulated_deform_conv_backward,
        _rotated.box_iou_rotated,
        _rotated.nms_rotated,
    )
}
