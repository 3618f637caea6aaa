"""The operators as standard PyTorch operators, for runtimes that do not have ours, such as ONNX."""

from collections.abc import Callable

import torch
from torch import Tensor

from dcnv4_mm.export._bev_cross_attn import bev_cross_attn_forward_portable
from dcnv4_mm.export._dcnv4 import dcnv4_forward_portable
from dcnv4_mm.export._deform_attn import (
    flash_deform_attn_forward_portable,
    ms_deform_attn_forward_portable,
)
from dcnv4_mm.ops import functional  # noqa: F401  (defines the operators)

__all__ = ["portable_decompositions"]


def portable_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """Decompositions of this package's operators into standard ones.

    Pass them to ``ExportedProgram.run_decompositions``. Each operator becomes one ``grid_sample``
    (attention: one per level) with a multiplication and a sum, so the graph grows by few nodes.
    Offsets and locations must be finite.

    Returns:
        Raw forward operator -> function with the same arguments.

    Example:
        >>> from dcnv4_mm.layers import DCNv4
        >>> x = torch.randn(1, 8, 8, 32)
        >>> program = torch.export.export(DCNv4(32, groups=2).eval(), (x,))
        >>> "dcnv4_mm" in str(program.run_decompositions(portable_decompositions()).graph)
        False
    """
    return {
        torch.ops.dcnv4_mm.bev_cross_attn_forward.default: bev_cross_attn_forward_portable,
        torch.ops.dcnv4_mm.dcnv4_forward.default: dcnv4_forward_portable,
        torch.ops.dcnv4_mm.flash_deform_attn_forward.default: flash_deform_attn_forward_portable,
        torch.ops.dcnv4_mm.ms_deform_attn_forward.default: ms_deform_attn_forward_portable,
    }
