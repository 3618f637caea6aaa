"""Integration with the OpenMMLab libraries."""

from types import ModuleType

from torch import nn

from dcnv4_mm.integrations import mmcv_ext
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
    """Makes every ``MultiScaleDeformableAttention`` of mmcv in a model use this package's operator.

    DINO, Deformable DETR, Mask2Former and other models of the OpenMMLab libraries contain this
    module. Our own DINO and Mask2Former call this function by default. The modules keep their
    parameters, state-dict keys, hooks and arguments, and compute the same; on the CPU mmcv has no
    kernel, this package has one. Subclasses of mmcv's class are not changed, as they may compute
    something else.

    Args:
        model: A built model, changed in place.

    Returns:
        Number of modules swapped; 0 if there are none, or none that were not swapped before.

    Raises:
        ImportError: mmcv is not installed, or its operators do not load.

    Note:
        At a sampling location exactly one pixel outside the image mmcv's CPU path has a derivative,
        this operator has none. Freshly initialized models have such locations, trained ones rarely.

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
