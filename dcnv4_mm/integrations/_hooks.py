"""Hooks that modify a host's model."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from dcnv4_mm.integrations import is_swapped, swap_deformable_attention
from dcnv4_mm.registry import HOOKS

__all__ = ["SwapDeformableAttentionHook"]


@HOOKS.register_module()
class SwapDeformableAttentionHook(Hook):
    """Makes the deformable attention of a host's model use this package's operator.

    It calls :func:`dcnv4_mm.integrations.swap_deformable_attention` before training, validation and
    testing; checkpoints are the same with and without it. ``dcnv4_mm.DINO`` and
    ``dcnv4_mm.Mask2FormerHead`` do not need it.

    Raises:
        ValueError: The model has no ``MultiScaleDeformableAttention`` of mmcv.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.SwapDeformableAttentionHook")]
    """

    def before_run(self, runner: Runner) -> None:
        """Swaps the attention of the built model; a second call changes nothing."""
        swapped = swap_deformable_attention(runner.model)
        if swapped:
            print_log(f"{swapped} deformable attention modules use dcnv4_mm", logger="current")
        elif not is_swapped(runner.model):
            raise ValueError(
                f"{type(runner.model).__name__} has no MultiScaleDeformableAttention of mmcv to "
                "swap: remove SwapDeformableAttentionHook from custom_hooks"
            )
