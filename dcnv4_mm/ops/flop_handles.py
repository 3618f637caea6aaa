"""Multiply-adds of the operators for counters that trace a model: fvcore's and mmengine's.

``torch.utils.flop_counter.FlopCounterMode`` knows the operators without these handles.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from dcnv4_mm.ops._bilinear import FLOPS_PER_SAMPLE

__all__ = ["flop_handles"]

_Handle = Callable[[Sequence[Any], Sequence[Any]], int]


def flop_handles() -> dict[str, _Handle]:
    """Handles for ``set_op_handle`` of fvcore's and mmengine's analyzers.

    These count a multiplication with its addition as one operation, torch's counter as two. A
    trace knows no values: for ``bev_cross_attn`` every camera counts as one that sees the query.

    Example:
        >>> from dcnv4_mm.layers import DCNv4
        >>> from mmengine.analysis import FlopAnalyzer  # doctest: +SKIP
        >>> layer, x = DCNv4(16, groups=1), torch.randn(1, 8, 8, 16)
        >>> analyzer = FlopAnalyzer(layer, x)  # doctest: +SKIP
        >>> analyzer.set_op_handle(**flop_handles()).total()  # doctest: +SKIP
        102400
    """
    return {
        f"dcnv4_mm::{name}_forward": _handle(points_per_channel)
        for name, points_per_channel in {
            "dcnv4": _dcnv4_points,
            "flash_deform_attn": lambda inputs: _sizes(inputs[1])[-1] // 3,
            "ms_deform_attn": lambda inputs: math.prod(_sizes(inputs[2])[-2:]),
            "bev_cross_attn": lambda inputs: _sizes(inputs[0])[1] * (_sizes(inputs[1])[-1] // 3),
        }.items()
    }


def _handle(points_per_channel: Callable[[Sequence[Any]], int]) -> _Handle:
    def count(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        samples = math.prod(_sizes(outputs[0])) * points_per_channel(inputs)
        return FLOPS_PER_SAMPLE // 2 * samples

    return count


def _dcnv4_points(inputs: Sequence[Any]) -> int:
    kernel_size, remove_center = inputs[2], inputs[8]
    sizes = [number.toIValue() for number in kernel_size.node().inputs()]
    return math.prod(sizes or kernel_size.toIValue()) - bool(remove_center.toIValue())


def _sizes(tensor: Any) -> list[int]:
    """Shape of a tensor in a graph of ``torch.jit.trace``."""
    return tensor.type().sizes()
