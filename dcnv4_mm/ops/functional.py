"""The public operators of the package, and which kernels serve them."""

import torch

from dcnv4_mm.ops._extension import changed_sources, how_to_build, load_library
from dcnv4_mm.ops.bev_cross_attn.functional import bev_cross_attn
from dcnv4_mm.ops.dcnv3 import dcnv3
from dcnv4_mm.ops.dcnv4.functional import dcnv4
from dcnv4_mm.ops.flash_deform_attn.functional import flash_deform_attn, ms_deform_attn

__all__ = [
    "backend_info",
    "bev_cross_attn",
    "dcnv3",
    "dcnv4",
    "flash_deform_attn",
    "how_to_build",
    "ms_deform_attn",
]


def backend_info() -> dict[str, dict[str, str]]:
    """Says which kernels serve each operator on each device type, and why others do not.

    Returns:
        For every operator, device type -> ``"compiled"`` (on the CPU with the instruction set, as
        in ``"compiled for avx512"``; in a clone, with a remark if it was compiled from older
        sources), or ``"reference: "`` and the reason.

    Example:
        >>> sorted(backend_info()["dcnv4"])
        ['cpu', 'cuda']
    """
    return {
        name: {device_type: _serving(name, device_type) for device_type in ("cpu", "cuda")}
        for name in ("dcnv4", "flash_deform_attn", "ms_deform_attn", "bev_cross_attn")
    }


def _serving(name: str, device_type: str) -> str:
    reason = load_library(device_type)
    if reason is None and not torch._C._dispatch_has_kernel_for_dispatch_key(
        f"dcnv4_mm::{name}_forward", device_type.upper()
    ):
        reason = f"there is no kernel for {device_type} yet"
    if reason is not None:
        return f"reference: {reason}"
    how = f"compiled for {torch.ops.dcnv4_mm.cpu_isa()}" if device_type == "cpu" else "compiled"
    return f"{how}, from older sources: run `make install`" if changed_sources(device_type) else how
