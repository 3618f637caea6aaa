"""The operators by standard ones, for runtimes that do not know them: ONNX above all."""

from collections.abc import Callable

import torch
from torch import Tensor

from dcnv4_mm.ops import functional  # noqa: F401  (defines the operators)
from dcnv4_mm.ops.bev_cross_attn.portable import bev_cross_attn_forward_portable
from dcnv4_mm.ops.dcnv4.portable import dcnv4_forward_portable
from dcnv4_mm.ops.flash_deform_attn.portable import (
    flash_deform_attn_forward_portable,
    ms_deform_attn_forward_portable,
)

__all__ = ["portable_decompositions"]


def portable_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """What ``ExportedProgram.run_decompositions`` needs to replace every operator of the package.

    Each becomes one ``grid_sample`` (attention: one per level) with a multiplication and a sum,
    so that a graph has few nodes more. Offsets and locations must be finite.

    Returns:
        Raw forward operator -> function of the same arguments.

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
