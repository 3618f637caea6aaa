"""Normalization over channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LN2d"]


class LN2d(nn.LayerNorm):
    """LayerNorm over the channels of channels-first maps.

    Args:
        num_channels: Number of channels C.
        eps: Added to the variance.
        device: Where the parameters are created; by default as for ``torch.nn.LayerNorm``.
        dtype: Type of the parameters, likewise.

    Note:
        The output is contiguous, whatever the strides of the input: mmcv 2.1's RoIAlign is silently
        wrong for anything else, and a feature pyramid passes these maps to it.
    """

    # mmcv names a norm inside ConvModule by this; the released checkpoints say `ln`.
    _abbr_ = "ln"

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_channels, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes x, (N, C, H, W), to the same shape and dtype, contiguous."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2).contiguous()
