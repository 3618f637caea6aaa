"""What the public operators ask of every tensor."""

import torch
from torch import Tensor

__all__ = ["check_dense", "check_floating"]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuses what is no tensor, and a tensor that is sparse or quantized."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of layout {tensor.layout}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Refuses any type of number but the four that the operators compute with, too."""
    check_dense(name, tensor)
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}")
