"""What connects this package's classes with the OpenMMLab libraries; imported by the registries."""

from types import ModuleType

from torch import nn

from dcnv4_mm.integrations import mmcv_ext

__all__ = ["is_swapped", "swap_deformable_attention"]


def swap_deformable_attention(model: nn.Module) -> int:
    """Puts this package's operator under every ``MultiScaleDeformableAttention`` of mmcv.

    That is what DINO, Deformable DETR, Mask2Former and others of the OpenMMLab libraries are
    built with. The modules stay where they are, with their parameters, state-dict keys, hooks and
    arguments, and compute the same; on the CPU mmcv has no kernel, here there is one. Classes
    derived from mmcv's are left alone, as they may compute something else.

    Args:
        model: A built model, changed in place.

    Returns:
        Number of modules swapped; 0 if there are none, or none that were not swapped before.

    Raises:
        ImportError: mmcv is not installed, or its operators do not load.

    Note:
        mmcv's CPU path has a derivative for a point exactly one pixel outside the image, this
        operator has none there. Freshly initialised models have such points, trained ones hardly.

    Example:
        >>> swap_deformable_attention(nn.Linear(2, 2))  # doctest: +SKIP
        0
    """
    mmcv = _import_mmcv()
    modules = [m for m in model.modules() if type(m) is mmcv.MultiScaleDeformableAttention]
    for module in modules:
        module.__class__ = mmcv.DeformableAttention
    return len(modules)


def is_swapped(model: nn.Module) -> bool:
    """Whether any module of a model is one that :func:`swap_deformable_attention` has changed."""
    return any(isinstance(m, _import_mmcv().DeformableAttention) for m in model.modules())


def _import_mmcv() -> ModuleType:
    mmcv_ext.install()
    try:
        from dcnv4_mm.integrations import _mmcv
    except ImportError as error:
        message = f"mmcv.ops cannot be imported ({error}): {mmcv_ext.serving()}"
        raise ImportError(message) from error
    return _mmcv
