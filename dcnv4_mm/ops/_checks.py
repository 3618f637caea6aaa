"""Checks of tensors that all public operators share."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dcnv4_mm.ops._extension import load_library

__all__ = ["check_dense", "check_floating", "checked_by_kernels"]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_dense(name: str, tensor: Tensor) -> None:
    """Raises unless the argument is a dense tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_nested:
        got = "a nested one" if tensor.is_nested else f"one of layout {tensor.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {got}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raises unless the argument is a dense tensor of a supported dtype."""
    check_dense(name, tensor)
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}")


def checked_by_kernels(*tensors: Tensor) -> bool:
    """Whether a call with these tensors goes to compiled kernels, which check all of it.

    Checks before the call, which cost more time than a kernel takes on a small tensor, are then
    needed only to explain a failure.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._is_any_autocast_enabled()
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:
        # No subclass: fake tensors, for one, have no kernels.
        if type(tensor) is not Tensor or not (tensor.is_cpu or tensor.is_cuda):
            return False
    return load_library("cpu" if tensor.is_cpu else "cuda") is None
