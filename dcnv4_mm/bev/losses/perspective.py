"""Losses of the perspective head's boxes, for each positive location, without reduction."""

import torch
from torch import Tensor

__all__ = ["centerness_target", "corner_loss", "ltrb_giou_loss"]


def centerness_target(ltrb: Tensor) -> Tensor:
    """Centerness of a location in its box: 1 in the middle, 0 on the border.

    Args:
        ltrb: Distances to the left, top, right and bottom side, (P, 4).

    Returns:
        (P,).
    """
    left, top, right, bottom = ltrb.unbind(-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()


def ltrb_giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - GIoU of boxes around the same location.

    Args:
        predicted: Distances to the left, top, right and bottom side, (P, 4) pixels.
        target: Likewise.

    Returns:
        (P,).

    Note:
        The IoU has a pixel added above and below the fraction, as the original's.
    """
    smaller, larger = torch.minimum(predicted, target), torch.maximum(predicted, target)
    intersection, enclosing = _area(smaller), _area(larger)
    union = _area(predicted) + _area(target) - intersection
    iou = (intersection + 1) / (union + 1)
    return 1 - iou + (enclosing - union) / enclosing


def _area(ltrb: Tensor) -> Tensor:
    left, top, right, bottom = ltrb.unbind(-1)
    return (left + right) * (top + bottom)


def corner_loss(predicted: Tensor, target: Tensor, beta: float = 0.05) -> Tensor:
    """Mean distance of boxes' corners, quadratic near zero.

    Args:
        predicted: (P, 8, 3) metres.
        target: (P, 8, 3) metres.
        beta: Where the quadratic part ends, in metres.

    Returns:
        (P,).

    Note:
        The quadratic part is not divided by ``beta``, as in the original: it jumps there.
    """
    distance = (predicted - target).abs()
    loss = torch.where(distance < beta, 0.5 * distance.square(), distance - 0.5 * beta)
    return loss.flatten(1).mean(1)
