"""BEVFormerV2's released checkpoints: the keys are ours, the boxes are those of mmdet3d 0.17.

There a box's sizes were (width, length) and its yaw ran clockwise from another axis,
``old = -yaw - pi / 2``. Only the weights of the last layer, which predicts box codes, depend on it.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

__all__ = ["convert_boxes", "convert_released_boxes", "restore_boxes"]

_TAG = "box_convention"
_CONVENTION = "mmdet3d 1.x"
_LAST_LAYER = re.compile(r"(.+\.)?pts_bbox_head\.reg_branches\.\d+\.4\.(weight|bias)")
# Index of each element of the box code in the other convention, and its sign: log w and log l are
# exchanged; the new sin yaw is -cos of the old one, the new cos yaw -sin.
_INDEX = (0, 1, 3, 2, 4, 5, 7, 6, 8, 9)
_SIGNS = (1, 1, 1, 1, 1, 1, -1, -1, 1, 1)


def convert_boxes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a released checkpoint to the box convention of mmdet3d 1.x.

    Args:
        checkpoint: The content of the file, with the weights as ``state_dict``.

    Returns:
        A new checkpoint, marked as converted in its ``meta``.

    Raises:
        ValueError: It is converted already, or holds no weights of a BEVFormerV2.
    """
    if checkpoint.get("meta", {}).get(_TAG) == _CONVENTION:
        raise ValueError("the checkpoint is converted already: its boxes are those of mmdet3d 1.x")
    meta = {**checkpoint.get("meta", {}), _TAG: _CONVENTION}
    return {**checkpoint, "meta": meta, "state_dict": _exchange(checkpoint)}


def convert_released_boxes(checkpoint: Any) -> Any:
    """Converts the boxes of a released BEVFormerV2; returns any other checkpoint unchanged.

    A released file is recognised by the ``mmcv_version`` in its ``meta``, which mmcv 1.x writes and
    mmengine does not. A bare state dict counts as converted.

    Args:
        checkpoint: The content of a file.

    Returns:
        The result of :func:`convert_boxes`, or ``checkpoint`` itself.
    """
    if not isinstance(checkpoint, Mapping):
        return checkpoint
    meta, weights = checkpoint.get("meta"), checkpoint.get("state_dict")
    released = isinstance(meta, Mapping) and "mmcv_version" in meta and _TAG not in meta
    return convert_boxes(checkpoint) if released and _is_bevformerv2(weights) else checkpoint


def restore_boxes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes :func:`convert_boxes`.

    Args:
        checkpoint: A checkpoint of this package, with the weights as ``state_dict``.

    Returns:
        A new checkpoint, as the original project would have released it.

    Raises:
        ValueError: It holds no weights of a BEVFormerV2.
    """
    meta = {key: value for key, value in checkpoint.get("meta", {}).items() if key != _TAG}
    return {**checkpoint, "meta": meta, "state_dict": _exchange(checkpoint)}


def _exchange(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Converts the weights; both directions are the same."""
    weights = checkpoint.get("state_dict")
    if not _is_bevformerv2(weights):
        raise ValueError(
            "the checkpoint must hold a BEVFormerV2 as `state_dict`, with the keys "
            "pts_bbox_head.reg_branches.<layer>.4.weight; it has none"
        )
    return {
        key: _exchange_elements(tensor) if _LAST_LAYER.fullmatch(key) else tensor
        for key, tensor in weights.items()
    }


def _is_bevformerv2(weights: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether these are weights with a box-code layer of 10 elements under ``pts_bbox_head``."""
    return isinstance(weights, Mapping) and any(
        isinstance(key, str)
        and _LAST_LAYER.fullmatch(key)
        and isinstance(tensor, Tensor)
        and tensor.shape[:1] == (len(_INDEX),)
        for key, tensor in weights.items()
    )


def _exchange_elements(tensor: Tensor) -> Tensor:
    signs = torch.tensor(_SIGNS, dtype=tensor.dtype, device=tensor.device)
    return tensor[list(_INDEX)] * signs.reshape(-1, *[1] * (tensor.dim() - 1))
