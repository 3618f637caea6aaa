"""What autocast asks of the operators."""

import torch
from torch import Tensor

__all__ = ["autocast_dtype"]


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast now wants of an operator's input, or ``None`` to leave it."""
    device = tensor.device.type
    # On devices that autocast does not know, torch raises instead of saying no.
    if device == "meta" or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
