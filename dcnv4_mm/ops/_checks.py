"""Checks of tensors that all public operators share."""

import torch
from torch import Tensor

__all__ = ["check_dense", "check_floating"]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_dense(name: str, tensor: Tensor) -> None:
    """Raises unless the argument is a dense tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {tensor.layout}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises unless the argument is a dense tensor of a supported dtype."""
    check_dense(name, tensor)
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}")
