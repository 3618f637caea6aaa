"""Integration with the OpenMMLab libraries."""

import sys
from types import ModuleType

from torch import nn

from dcnv4_mm.integrations import _transformers
from dcnv4_mm.integrations._hosts import find_problems

__all__ = ["find_problems", "install", "is_swapped", "swap_deformable_attention"]


def install() -> None:
    """Prepares this process for OpenMMLab: call it before a host such as mmdet is imported.

    It provides the operators that mmcv-lite does not have
    (:mod:`dcnv4_mm.integrations.mmcv_ext`), makes mmengine read and write checkpoints safely
    (:func:`dcnv4_mm.engine.install`), and makes our configs available as ``dcnv4_mm::...``. Our
    tools call it; it is idempotent.

    Raises:
        ImportError: mmengine is not installed.
    """
    # Its import installs the operators.
    import dcnv4_mm.registry  # noqa: F401
    from dcnv4_mm.engine import install as install_engine

    install_engine()


def swap_deformable_attention(model: nn.Module) -> int:
    """Makes the multi-scale deformable attention of a model use this package's operator.

    It finds mmcv's ``MultiScaleDeformableAttention`` in models of the OpenMMLab libraries, and the
    attention of Hugging Face transformers' Deformable DETR, RT-DETR, RT-DETRv2, D-FINE, DEIMv2,
    LW-DETR, RF-DETR, Grounding DINO, OmDet-Turbo, Mask2Former, OneFormer and relatives. Our own
    DINO and Mask2Former call this function by default. Modules keep their parameters, state-dict
    keys, hooks and arguments, and compute the same. Subclasses of mmcv's class are not changed, as
    they may compute something else.

    Args:
        model: A built model, changed in place.

    Returns:
        Number of attention layers swapped; 0 if there are none, or none that were not swapped
        before.

    Raises:
        ValueError: A layer of transformers has deformable attention that this package does not
            compute, such as discrete sampling; the model is then unchanged.

    Note:
        At a sampling location exactly one pixel outside the image ``grid_sample``, which both
        libraries use on the CPU, has a derivative, this operator has none. Freshly initialized
        models have such locations, trained ones rarely.

    Example:
        >>> swap_deformable_attention(nn.Linear(2, 2))
        0
    """
    replacements = _transformers.find_replacements(model)
    if mmcv := _import_mmcv():
        modules = [m for m in model.modules() if type(m) is mmcv.MultiScaleDeformableAttention]
        for module in modules:
            module.__class__ = mmcv.DeformableAttention
    else:
        modules = []
    for replace in replacements:
        replace()
    return len(modules) + len(replacements)


def is_swapped(model: nn.Module) -> bool:
    """Whether any module of a model is one that :func:`swap_deformable_attention` has changed."""
    mmcv = _import_mmcv()
    return any(
        _transformers.is_swapped_layer(m) or (mmcv and isinstance(m, mmcv.DeformableAttention))
        for m in model.modules()
    )


def _import_mmcv() -> ModuleType | None:
    """Our class for mmcv's modules, or ``None`` in a process that has not imported mmcv.ops."""
    if "mmcv.ops" not in sys.modules:
        return None
    from dcnv4_mm.integrations import _mmcv

    return _mmcv
