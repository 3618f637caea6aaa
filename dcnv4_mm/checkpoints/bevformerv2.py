"""BEVFormerV2's released checkpoints: the names are ours, the boxes are those of mmdet3d 0.17.

There a box's sizes were (width, length) and its yaw ran clockwise from another axis,
``old = -yaw - pi / 2``. Of the weights only the last layer that predicts box codes knows of it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["convert_boxes", "restore_boxes"]

_TAG = "box_convention"
_CONVENTION = "mmdet3d 1.x"
_LAST_LAYER = re.compile(r"(.+\.)?reg_branches\.\d+\.4\.(weight|bias)")
# Row of the code in the other convention, and its sign: (log w, log l) change places; the new
# sin yaw is -cos of the old one, the new cos yaw -sin.
_ROWS = (0, 1, 3, 2, 4, 5, 7, 6, 8, 9)
_SIGNS = (1, 1, 1, 1, 1, 1, -1, -1, 1, 1)


def convert_boxes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a released checkpoint predict boxes in the convention of mmdet3d 1.x.

    Args:
        checkpoint: What was in the file, with the weights as ``state_dict``.

    Returns:
        A new checkpoint, whose ``meta`` says that it is converted.

    Raises:
        ValueError: It is converted already, or holds no weights of BEVFormerV2.
    """
    if checkpoint.get("meta", {}).get(_TAG) == _CONVENTION:
        raise ValueError("the checkpoint is converted already: its boxes are those of mmdet3d 1.x")
    meta = {**checkpoint.get("meta", {}), _TAG: _CONVENTION}
    return {**checkpoint, "meta": meta, "state_dict": _exchange(checkpoint)}


def restore_boxes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes :func:`convert_boxes`.

    Args:
        checkpoint: A checkpoint of this package, with the weights as ``state_dict``.

    Returns:
        A new checkpoint, as the original project would have released it.

    Raises:
        ValueError: It holds no weights of BEVFormerV2.
    """
    meta = {key: value for key, value in checkpoint.get("meta", {}).items() if key != _TAG}
    return {**checkpoint, "meta": meta, "state_dict": _exchange(checkpoint)}


def _exchange(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The way is the same in both directions."""
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, Mapping) or not any(map(_LAST_LAYER.fullmatch, weights)):
        raise ValueError(
            "the checkpoint must hold a BEVFormerV2 as `state_dict`, with weights named "
            "pts_bbox_head.reg_branches.<layer>.4.weight; it has none"
        )
    return {
        name: _exchange_rows(tensor) if _LAST_LAYER.fullmatch(name) else tensor
        for name, tensor in weights.items()
    }


def _exchange_rows(tensor: Tensor) -> Tensor:
    signs = torch.tensor(_SIGNS, dtype=tensor.dtype, device=tensor.device)
    return tensor[list(_ROWS)] * signs.reshape(-1, *[1] * (tensor.dim() - 1))
