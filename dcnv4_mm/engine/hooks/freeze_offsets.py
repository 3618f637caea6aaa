"""A hook that trains DCNv4 without its offsets, for ablations."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.dcnv4.layout import num_points, offset_rows
from dcnv4_mm.registry import HOOKS

__all__ = ["FreezeOffsetsHook", "freeze_offsets"]


@HOOKS.register_module()
class FreezeOffsetsHook(Hook):
    """Keeps the offsets of all DCNv4 layers at zero in training.

    Every layer then samples a regular grid, as a convolution does; its masks are still trained.

    Raises:
        ValueError: The model has no DCNv4 layer.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.FreezeOffsetsHook")]
    """

    def before_train(self, runner: Runner) -> None:
        """Freezes the offsets when training begins, after weights are loaded."""
        layers = freeze_offsets(runner.model)
        print_log(f"The offsets of {layers} DCNv4 layers stay at zero", logger="current")


def freeze_offsets(model: nn.Module) -> int:
    """Sets all offsets in a model to zero, and their gradients from then on.

    Args:
        model: The model, changed in place.

    Returns:
        Number of DCNv4 layers in the model.

    Raises:
        ValueError: The model has no DCNv4 layer.
    """
    layers = [module for module in model.modules() if isinstance(module, DCNv4)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DCNv4 layer whose offsets could be frozen")
    for layer in layers:
        rows = offset_rows(layer.groups, num_points(layer.kernel_size, layer.remove_center))
        for parameter in (layer.offset_mask.weight, layer.offset_mask.bias):
            parameter.data[rows] = 0
            parameter.register_hook(_zero_rows(rows))
    return len(layers)


def _zero_rows(rows: Tensor):
    return lambda grad: grad.index_fill(0, rows.to(grad.device), 0)
