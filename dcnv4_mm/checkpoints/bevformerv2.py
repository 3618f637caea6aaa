"""BEVFormerV2's released checkpoints: the keys are ours, the boxes are those of mmdet3d 0.17.

There a box's sizes were (width, length) and its yaw ran clockwise from another axis,
``old = -yaw - pi / 2``. Only the weights of the last layer, which predicts box codes, depend on it.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

__all__ = ["convert_boxes", "convert_released_boxes", "mark_boxes", "restore_boxes"]

_TAG = "box_convention"
_CONVENTION = "mmdet3d 1.x"
# Entries of `meta` that mmengine or this package write, and mmcv 1.x does not.
_OWN = (_TAG, "mmengine_version", "dataset_meta", "experiment_name")
_LAST_LAYER = re.compile(r"(.+\.)?pts_bbox_head\.reg_branches\.\d+\.4\.(weight|bias)")
_MISSING = "it has no keys pts_bbox_head.reg_branches.<layer>.4.weight"
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
    meta = _meta(checkpoint)
    if meta.get(_TAG) == _CONVENTION:
        raise ValueError("the checkpoint is converted already: its boxes are those of mmdet3d 1.x")
    meta[_TAG] = _CONVENTION
    return {**checkpoint, "meta": meta, "state_dict": _exchange(checkpoint)}


def convert_released_boxes(checkpoint: Any) -> Any:
    """Converts the boxes of a released BEVFormerV2; returns any other checkpoint unchanged.

    The ``meta`` of a file says which it is: mmcv 1.x writes ``mmcv_version``, mmengine writes
    ``mmengine_version``, and :func:`convert_boxes` and :func:`mark_boxes` leave a mark.

    Args:
        checkpoint: The content of a file.

    Returns:
        The result of :func:`convert_boxes`, or ``checkpoint`` itself.

    Raises:
        ValueError: It is a BEVFormerV2, and its ``meta`` says neither.
    """
    if not isinstance(checkpoint, Mapping):
        return checkpoint
    weights = checkpoint.get("state_dict", checkpoint)
    if not _is_bevformerv2(weights):
        return checkpoint
    meta = _meta(checkpoint)
    if any(key in meta for key in _OWN):
        return checkpoint
    if "mmcv_version" in meta:
        return convert_boxes(checkpoint)
    raise ValueError(
        "a BEVFormerV2 checkpoint without mmcv_version or mmengine_version in its `meta`: its "
        "boxes may be those of mmdet3d 0.x or 1.x. Say which with tools/model_converters/"
        "convert_bev_boxes.py: FILE OUT for one of the original project, FILE OUT --mark for one "
        "of this package; or with convert_boxes or mark_boxes of dcnv4_mm.checkpoints.bevformerv2"
    )


def mark_boxes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Notes in ``meta`` that the boxes are those of mmdet3d 1.x already.

    Args:
        checkpoint: The content of a file of this package, or its bare state dict.

    Returns:
        A new checkpoint with the same weights as ``state_dict``.

    Raises:
        ValueError: It holds no weights of a BEVFormerV2.
    """
    meta = _meta(checkpoint)
    weights = checkpoint.get("state_dict", checkpoint)
    if not _is_bevformerv2(weights):
        raise ValueError(f"the checkpoint must hold a BEVFormerV2; {_MISSING}")
    rest = checkpoint if weights is not checkpoint else {"state_dict": checkpoint}
    return {**rest, "meta": {**meta, _TAG: _CONVENTION}}


def restore_boxes(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes :func:`convert_boxes`.

    Args:
        checkpoint: A checkpoint of this package, with the weights as ``state_dict``.

    Returns:
        A new checkpoint, as the original project would have released it.

    Raises:
        ValueError: It holds no weights of a BEVFormerV2.
    """
    meta = {key: value for key, value in _meta(checkpoint).items() if key != _TAG}
    return {**checkpoint, "meta": meta, "state_dict": _exchange(checkpoint)}


def _meta(checkpoint: Any) -> dict[Any, Any]:
    """The ``meta`` of a checkpoint; empty where it is missing or something else."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"the checkpoint: expected a dict, got a {type(checkpoint).__name__}")
    meta = checkpoint.get("meta")
    return dict(meta) if isinstance(meta, Mapping) else {}


def _exchange(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Converts the weights; both directions are the same."""
    weights = checkpoint.get("state_dict")
    if not _is_bevformerv2(weights):
        raise ValueError(f"the checkpoint must hold a BEVFormerV2 as `state_dict`; {_MISSING}")
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
