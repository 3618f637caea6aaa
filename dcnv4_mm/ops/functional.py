"""The public operators of the package, and which kernels serve them."""

import torch

from dcnv4_mm.ops._extension import load_library
from dcnv4_mm.ops.dcnv4.functional import dcnv4

__all__ = ["backend_info", "dcnv4"]


def backend_info() -> dict[str, dict[str, str]]:
    """Says which kernels serve each operator on each device type, and why others do not.

    Returns:
        For every operator, device type -> ``"compiled"`` (on the CPU with the instruction set, as
        in ``"compiled for avx512"``), or ``"reference: "`` and the reason.

    Example:
        >>> sorted(backend_info()["dcnv4"])
        ['cpu', 'cuda']
    """
    serving = {}
    for device_type in ("cpu", "cuda"):
        reason = load_library(device_type)
        serving[device_type] = "compiled" if reason is None else f"reference: {reason}"
    if serving["cpu"] == "compiled":
        serving["cpu"] += f" for {torch.ops.dcnv4_mm.cpu_isa()}"
    return {"dcnv4": serving}
