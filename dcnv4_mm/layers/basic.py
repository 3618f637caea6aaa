"""Small building blocks that plain PyTorch lacks."""

import torch
from torch import Tensor, nn

from dcnv4_mm.layers._fx import fx_leaf
from dcnv4_mm.ops.arguments import read_float

__all__ = ["DropPath", "channels_first", "depthwise"]


def channels_first(x: Tensor) -> Tensor:
    """A view (N, C, H, W) of maps (N, H, W, C); a copy in a compiled graph."""
    x = x.permute(0, 3, 1, 2)
    # Inductor (torch 2.13) fails to compare the strides of this view where sizes are symbols.
    return x.contiguous() if torch.compiler.is_compiling() else x


def depthwise(
    channels: int,
    kernel_size: int,
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Conv2d:
    """A depthwise convolution of an odd size that keeps the size of its maps."""
    return nn.Conv2d(
        channels,
        channels,
        kernel_size,
        padding=kernel_size // 2,
        groups=channels,
        device=device,
        dtype=dtype,
    )


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training, and scales up what is kept.

    Args:
        rate: Probability that a sample's branch is dropped, in [0, 1).

    Raises:
        TypeError: ``rate`` is not a number.
        ValueError: It is outside its range.

    Source:
        Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = read_float("rate", rate)
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"rate must be at least 0 and below 1, got {rate}")

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """Drops samples of x, (N, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        keep = torch.rand(shape, dtype=torch.float32, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"
