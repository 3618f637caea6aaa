"""Hooks that change a host's model."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from dcnv4_mm.integrations import is_swapped, swap_deformable_attention
from dcnv4_mm.registry import HOOKS

__all__ = ["SwapDeformableAttentionHook"]


@HOOKS.register_module()
class SwapDeformableAttentionHook(Hook):
    """Puts this package's operator under the deformable attention of the model that is run.

    It acts before training, validation and testing begin; checkpoints are the same with and
    without it. See :func:`dcnv4_mm.integrations.swap_deformable_attention`.

    Raises:
        ValueError: The model has no ``MultiScaleDeformableAttention`` of mmcv.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.SwapDeformableAttentionHook")]
    """

    def before_run(self, runner: Runner) -> None:
        """Acts on the built model; where it was swapped before, nothing changes."""
        swapped = swap_deformable_attention(runner.model)
        if swapped:
            print_log(f"{swapped} deformable attention modules use dcnv4_mm", logger="current")
        elif not is_swapped(runner.model):
            raise ValueError(
                f"{type(runner.model).__name__} has no MultiScaleDeformableAttention of mmcv to "
                "swap: remove SwapDeformableAttentionHook from custom_hooks"
            )
