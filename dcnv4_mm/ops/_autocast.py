"""The dtypes that autocast requires of the operators."""

import torch
from torch import Tensor

__all__ = ["autocast_dtype"]


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype to which autocast casts an operator's input now, or ``None``."""
    device = tensor.device.type
    # On devices that autocast does not know, torch raises instead of saying no.
    if device == "meta" or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
