"""Tracing of the hosts' models by ``torch.export`` with dynamic image sizes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SymbolicSizes", "pooling_decompositions"]


class SymbolicSizes(TorchFunctionMode):
    """A context in which mmdet's transformers keep the sizes of feature maps symbolic.

    mmdet's DINO, Deformable DETR and Mask2Former make tensors of the sizes of their feature maps
    and read them back as ints. ``torch.export`` tracks shapes, not the values of tensors, and stops
    there. Inside this context such a tensor is an array of the symbolic sizes instead. Other models
    are not affected.

    Note:
        The attention must accept sizes that are not tensors: see
        :func:`dcnv4_mm.integrations.swap_deformable_attention`.

    Example:
        >>> with SymbolicSizes():
        ...     program = torch.export.export(torch.nn.Linear(2, 2), (torch.randn(3, 2),))
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Replaces the functions that would read the values of sizes; calls the others."""
        kwargs = kwargs or {}
        if func is torch._shape_as_tensor:
            return np.array(list(args[0].shape), dtype=object).view(_Sizes)
        if func is torch.linspace and len(args) == 3 and isinstance(args[2], torch.SymInt):
            start, end, steps = args
            step = (end - start) / torch.sym_max(steps - 1, 1)
            return start + torch.arange(steps, **kwargs) * step
        if func is torch.Tensor.new_tensor and isinstance(args[1], _Sizes):
            return args[1].tensor(dtype=args[0].dtype, device=args[0].device)
        if func is torch.meshgrid:
            # torch cannot decompose the call without an explicit indexing.
            kwargs["indexing"] = kwargs.get("indexing") or "ij"
        return func(*args, **kwargs)


class _Sizes(np.ndarray):
    """An array of sizes, ints or symbols, with the tensor methods that mmdet calls on them."""

    def to(self, *args: Any) -> "_Sizes":
        return self

    def flip(self, dims: list[int]) -> "_Sizes":
        return np.flip(self, dims)

    def unsqueeze(self, dim: int) -> "_Sizes":
        return np.expand_dims(self, dim)

    def new_zeros(self, shape: tuple[int, ...]) -> "_Sizes":
        return np.zeros(shape, dtype=object).view(_Sizes)

    def view(self, *shape: Any) -> "_Sizes":
        # numpy's own view takes one argument, a type.
        return super().view(*shape) if isinstance(shape[0], type) else self.reshape(shape)

    def tensor(self, *, dtype: torch.dtype = torch.int64, **kwargs: Any) -> torch.Tensor:
        # torch.tensor would specialize symbols to their values.
        sizes = [torch.scalar_tensor(size, dtype=dtype, **kwargs) for size in self.flat]
        return torch.stack(sizes).view(self.shape)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.cat:
            return np.concatenate(*args).view(cls)
        # Combined with a tensor, for example as its divisor.
        args = tuple(arg.tensor() if isinstance(arg, cls) else arg for arg in args)
        return func(*args, **(kwargs or {}))


def pooling_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """Decompositions of adaptive pooling that keep image sizes dynamic.

    Pass them to ``ExportedProgram.run_decompositions`` before ONNX or AOTInductor. torch's own
    decompositions are valid only for feature maps whose sizes divide like those of the example
    input, and read out of bounds for others. UPerNet pools maps of any size to 2 x 2, 3 x 3 and
    6 x 6.

    Returns:
        Operator -> function with the same arguments.

    Example:
        >>> program = torch.export.export(torch.nn.AdaptiveAvgPool2d(3), (torch.rand(1, 1, 8, 8),))
        >>> "pool" in str(program.run_decompositions(pooling_decompositions()).graph)
        False
    """
    return {torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d}


def _adaptive_avg_pool2d(images: Tensor, output_size: list[int]) -> Tensor:
    rows, columns = (
        _averages(size, count, images)
        for size, count in zip(images.shape[-2:], output_size, strict=True)
    )
    return rows @ images @ columns.mT


def _averages(size: int, count: int, like: Tensor) -> Tensor:
    """The matrix [count, size] of adaptive average pooling from ``size`` to ``count`` elements."""
    cells = torch.arange(count, device=like.device).unsqueeze(-1)
    first, end = cells * size // count, ((cells + 1) * size + count - 1) // count
    index = torch.arange(size, device=like.device)
    inside = (index >= first) & (index < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)
