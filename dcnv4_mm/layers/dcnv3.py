"""DCNv3 as a layer, on DCNv4's operator: offsets and softmaxed masks from a normalized branch."""

import torch.nn.functional as F
from torch import Tensor, nn

from dcnv4_mm.layers._fx import fx_leaf
from dcnv4_mm.layers._torchscript import refuse_script
from dcnv4_mm.ops.arguments import read_float, read_int
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

    Raises:
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
    ) -> None:
        super().__init__()
        channels = read_int("channels", channels, minimum=1)
        groups = read_int("groups", groups, minimum=1)
        if channels % groups:
            raise ValueError(
                f"channels must be a multiple of groups, got {channels} channels, {groups} groups"
            )
        dilation = read_int("dilation", dilation, minimum=1)
        kernel_size = read_int("kernel_size", kernel_size, minimum=1)
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        dw_kernel_size = read_int("dw_kernel_size", dw_kernel_size, minimum=1)
        for name, size in (("kernel_size", kernel_size), ("dw_kernel_size", dw_kernel_size)):
            if size % 2 == 0:
                raise ValueError(f"{name} must be odd, got {size}")
        self.channels = channels
        self.groups = groups
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.offset_scale = read_float("offset_scale", offset_scale)
        self.remove_center = remove_center

        if not isinstance(remove_center, bool):
            raise TypeError(f"remove_center must be True or False, got {remove_center!r}")
        points = num_points((kernel_size, kernel_size), remove_center)
        if points < 1:
            raise ValueError("remove_center leaves a 1x1 kernel without points: use a larger one")
        self.center_feature_scale_proj = (
            nn.Linear(channels, groups) if center_feature_scale else None
        )
        self.dw_conv = nn.Conv2d(
            channels, channels, dw_kernel_size, padding=dw_kernel_size // 2, groups=channels
        )
        self.dw_norm = nn.LayerNorm(channels, eps=1e-6)
        self.offset = nn.Linear(channels, 2 * groups * points)
        self.mask = nn.Linear(channels, groups * points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
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
