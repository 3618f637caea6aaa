"""DCNv3 as a layer, on DCNv4's operator: offsets and softmaxed masks from a normalized branch."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcnv4_mm.layers._fx import fx_leaf
from dcnv4_mm.layers._torchscript import refuse_script
from dcnv4_mm.layers.basic import depthwise
from dcnv4_mm.ops.arguments import read_bool, read_channels, read_float, read_int, read_odd
from dcnv4_mm.ops.dcnv4.layout import num_points
from dcnv4_mm.ops.functional import dcnv3

__all__ = ["DCNv3"]


class DCNv3(nn.Module):
    """Deformable convolution v3 with learned offsets and masks, channels last.

    A depthwise convolution, a norm and a GELU extract features of the input, from which two linear
    layers predict offsets and masks. The masks of a group sum to 1. A new layer has no offsets and
    equal masks.

    Args:
        channels: Number of channels C, in and out.
        groups: Number of groups G, a divisor of ``channels``.
        kernel_size: Rows and columns of the grid of sampling points, odd.
        dilation: Distance between the grid's points.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        dw_kernel_size: Size of the depthwise convolution, odd; ``None`` for ``kernel_size``.
        center_feature_scale: Mixes the value itself into the output, by a learned weight per
            group and pixel.
        remove_center: Leaves out the grid's middle point.
        device: Where the parameters are created; by default as for ``torch.nn.Linear``.
        dtype: Type of the parameters, likewise.

    Raises:
        TypeError: An argument is not a number or a bool, as it must be.
        ValueError: An argument is out of its range.

    Source:
        Wang et al., "InternImage", CVPR 2023, section 3.1. Stride and padding, which cannot be
        chosen freely there either, are those that keep the size.

    Example:
        >>> DCNv3(64, groups=4)(torch.randn(2, 14, 14, 64)).shape
        torch.Size([2, 14, 14, 64])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        kernel_size: int = 3,
        dilation: int = 1,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.groups = channels, groups = read_channels(channels, groups)
        self.kernel_size = kernel_size = read_odd("kernel_size", kernel_size)
        self.dilation = read_int("dilation", dilation, minimum=1)
        self.offset_scale = read_float("offset_scale", offset_scale)
        self.remove_center = read_bool("remove_center", remove_center)

        points = num_points((kernel_size, kernel_size), remove_center)
        if points < 1:
            raise ValueError("remove_center leaves a 1x1 kernel without points: use a larger one")
        linear = partial(nn.Linear, channels, device=device, dtype=dtype)
        scaled = read_bool("center_feature_scale", center_feature_scale)
        self.center_feature_scale_proj = linear(groups) if scaled else None
        size = kernel_size if dw_kernel_size is None else read_odd("dw_kernel_size", dw_kernel_size)
        self.dw_conv = depthwise(channels, size, device=device, dtype=dtype)
        self.dw_norm = nn.LayerNorm(channels, eps=1e-6, device=device, dtype=dtype)
        self.offset = linear(2 * groups * points)
        self.mask = linear(groups * points)
        self.input_proj = linear(channels)
        self.output_proj = linear(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets, masks and center weights start at zero, projections by Xavier's rule."""
        for layer in (self.offset, self.mask, self.center_feature_scale_proj):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.input_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: (N, H, W, C).

        Returns:
            (N, H, W, C).

        Raises:
            ValueError: The shape of ``x`` does not fit the layer.
        """
        if x.dim() != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"x must be (N, H, W, {self.channels}), got {tuple(x.shape)}")
        value = self.input_proj(x)
        features = self.dw_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        features = F.gelu(self.dw_norm(features))
        offset = self.offset(features)
        mask = self.mask(features).unflatten(-1, (self.groups, -1)).softmax(-1).flatten(-2)
        output = dcnv3(
            value,
            offset,
            # Under autocast a softmax is float32.
            mask.to(offset.dtype),
            groups=self.groups,
            kernel_size=self.kernel_size,
            padding=self.dilation * (self.kernel_size // 2),
            dilation=self.dilation,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        if self.center_feature_scale_proj is not None:
            # [N, H, W, G, 1]: one weight for all channels of a group.
            weight = self.center_feature_scale_proj(features).sigmoid().unsqueeze(-1)
            output, value = (maps.unflatten(-1, (self.groups, -1)) for maps in (output, value))
            output = (output * (1 - weight) + value * weight).flatten(-2)
        return self.output_proj(output)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, offset_scale={self.offset_scale}, "
            f"remove_center={self.remove_center}"
        )
