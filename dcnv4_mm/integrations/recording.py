"""What lets torch record the hosts' transformers as graphs in which image sizes are free."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SymbolicSizes", "pooling_decompositions"]


class SymbolicSizes(TorchFunctionMode):
    """Inside it, mmdet's transformers compute with the sizes of maps as symbols.

    mmdet's DINO, Deformable DETR and Mask2Former make tensors of the sizes of their maps and read
    them back as ints. A graph knows only the shapes of tensors, not their numbers, so that
    recording stops there. Inside this context such a tensor is an array of the sizes themselves.
    Nothing changes for a model that does not ask for them.

    Note:
        The attention must take sizes that are no tensors: see
        :func:`dcnv4_mm.integrations.swap_deformable_attention`.

    Example:
        >>> with SymbolicSizes():
        ...     program = torch.export.export(torch.nn.Linear(2, 2), (torch.randn(3, 2),))
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Answers the functions that would take the values of sizes; passes on the others."""
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
            # The default, without which torch cannot decompose it.
            kwargs["indexing"] = kwargs.get("indexing") or "ij"
        return func(*args, **kwargs)


class _Sizes(np.ndarray):
    """An array of sizes, each an int or a symbol, with what mmdet does to a tensor of them."""

    def to(self, *args: Any) -> "_Sizes":
        return self

    def flip(self, dims: list[int]) -> "_Sizes":
        return np.flip(self, dims)

    def unsqueeze(self, dim: int) -> "_Sizes":
        return np.expand_dims(self, dim)

    def new_zeros(self, shape: tuple[int, ...]) -> "_Sizes":
        return np.zeros(shape, dtype=object).view(_Sizes)

    def view(self, *shape: Any) -> "_Sizes":
        # An array's own view has one argument, a type.
        return super().view(*shape) if isinstance(shape[0], type) else self.reshape(shape)

    def tensor(self, *, dtype: torch.dtype = torch.int64, **kwargs: Any) -> torch.Tensor:
        # torch.tensor would take the values of symbols.
        sizes = [torch.scalar_tensor(size, dtype=dtype, **kwargs) for size in self.flat]
        return torch.stack(sizes).view(self.shape)

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.cat:
            return np.concatenate(*args).view(cls)
        # Beside a tensor, as its divisor.
        args = tuple(arg.tensor() if isinstance(arg, cls) else arg for arg in args)
        return func(*args, **(kwargs or {}))


def pooling_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """What ``ExportedProgram.run_decompositions`` needs to leave sizes free in adaptive pooling.

    torch's own decompositions, which ONNX files and packages of AOTInductor get otherwise, hold for
    maps whose sizes divide as those of the recording do, and read beyond others; UPerNet and others
    pool maps of any size to 2 x 2, 3 x 3 and 6 x 6.

    Returns:
        Operator -> function of the same arguments.

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
    """The matrix [count, size] that averages ``size`` numbers to ``count``, as torch does."""
    cells = torch.arange(count, device=like.device).unsqueeze(-1)
    first, end = cells * size // count, ((cells + 1) * size + count - 1) // count
    places = torch.arange(size, device=like.device)
    inside = (places >= first) & (places < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)
