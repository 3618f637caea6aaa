"""DCNv4 as a layer: it predicts its own offsets and masks from its input."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from dcnv4_mm.layers._fx import fx_leaf
from dcnv4_mm.layers._torchscript import refuse_script
from dcnv4_mm.layers.basic import depthwise
from dcnv4_mm.ops.arguments import read_bool, read_channels, read_float, read_odd, read_pair
from dcnv4_mm.ops.dcnv4.layout import num_points, offset_mask_channels, output_size
from dcnv4_mm.ops.functional import dcnv4

__all__ = ["DCNv4"]

_Pair = tuple[int, int]


class DCNv4(nn.Module):
    """Deformable convolution v4 with learned offsets and masks, channels last.

    :class:`~dcnv4_mm.layers.DCNv4Conv2d` is the same for channels-first maps (N, C, H, W).

    A linear layer (after a depthwise convolution, if there is one) predicts offsets and masks from
    the input pixel under the center of the kernel. It starts at zero, so a new layer outputs
    the bias of its output projection until it has learned masks.

    Args:
        channels: Number of channels C, in and out.
        groups: Number of groups G, a divisor of ``channels``.
        kernel_size: Rows and columns of the grid of sampling points.
        stride: Step between output pixels.
        padding: How far the grid may reach over the border.
        dilation: Distance between the grid's points.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        dw_kernel_size: Size of a depthwise convolution before offsets and masks are predicted;
            odd, or ``None`` for none.
        center_feature_scale: Mixes the value itself into the output, by a learned weight per
            group and pixel.
        remove_center: Leaves out the grid's middle point.
        output_bias: Whether the output projection has a bias.
        without_pointwise: Leaves out the value and output projections ("lightweight").
        device: Where the parameters are created; by default as for ``torch.nn.Linear``.
        dtype: Type of the parameters, likewise.

    Raises:
        TypeError: An argument is not a number, a pair of numbers or a bool, as it must be.
        ValueError: An argument is out of its range.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, section 3.2. Other than there,
        stride and padding may be any: offsets are read where the kernel is centered.

    Example:
        >>> DCNv4(64, groups=4)(torch.randn(2, 14, 14, 64)).shape
        torch.Size([2, 14, 14, 64])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        kernel_size: int | _Pair = 3,
        stride: int | _Pair = 1,
        padding: int | _Pair = 1,
        dilation: int | _Pair = 1,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.groups = channels, groups = read_channels(channels, groups)
        self.kernel_size = read_pair("kernel_size", kernel_size, minimum=1)
        self.stride = read_pair("stride", stride, minimum=1)
        self.padding = read_pair("padding", padding, minimum=0)
        self.dilation = read_pair("dilation", dilation, minimum=1)
        self.offset_scale = read_float("offset_scale", offset_scale)
        self.remove_center = read_bool("remove_center", remove_center)

        points = num_points(self.kernel_size, remove_center)
        if points < 1:
            raise ValueError("remove_center leaves a 1x1 kernel without points: use a larger one")
        linear = partial(nn.Linear, channels, device=device, dtype=dtype)
        scaled = read_bool("center_feature_scale", center_feature_scale)
        self.center_feature_scale_proj = linear(groups) if scaled else None
        self.offset_mask_dw = None
        if dw_kernel_size is not None:
            size = read_odd("dw_kernel_size", dw_kernel_size)
            self.offset_mask_dw = depthwise(channels, size, device=device, dtype=dtype)
        self.offset_mask = linear(offset_mask_channels(groups, points))
        bias = read_bool("output_bias", output_bias)
        projected = not read_bool("without_pointwise", without_pointwise)
        self.value_proj = linear(channels) if projected else None
        self.output_proj = linear(channels, bias=bias) if projected else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets, masks and center weights start at zero, projections by Xavier's rule."""
        for layer in (self.offset_mask, self.center_feature_scale_proj):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @fx_leaf
    def forward(self, x: Tensor, shape: _Pair | None = None) -> Tensor:
        """Applies the layer.

        Args:
            x: (N, H, W, C), or (N, L, C) with L = H * W.
            shape: (H, W) of the image. For x of three axes it may be left out only if the image
                is square: the number of pixels alone determines a square only.

        Returns:
            (N, H_out, W_out, C), or (N, H_out * W_out, C) for x of three axes.

        Raises:
            ValueError: The shape of ``x`` does not fit the layer or ``shape``.
        """
        if x.shape[-1] != self.channels or x.dim() not in (3, 4):
            raise ValueError(
                f"x must be (N, H, W, {self.channels}) or (N, L, {self.channels}), got "
                f"{tuple(x.shape)}"
            )
        if x.dim() == 3:
            return self._forward(x.unflatten(1, _image_shape(x.shape[1], shape))).flatten(1, 2)
        if shape is not None and read_pair("shape", shape, minimum=1) != x.shape[1:3]:
            raise ValueError(f"x has the shape {tuple(x.shape)}, which is not of {shape} pixels")
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        value = x if self.value_proj is None else self.value_proj(x)
        output = dcnv4(
            value,
            self.offset_mask(self._at_centers(self._offset_features(x))),
            groups=self.groups,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
        )
        if self.center_feature_scale_proj is not None:
            # [N, H_out, W_out, G, 1]: one weight for all channels of a group.
            weight = self.center_feature_scale_proj(output).sigmoid().unsqueeze(-1)
            output, center = (
                maps.unflatten(-1, (self.groups, -1))
                for maps in (output, self._at_centers(value).to(output.dtype))
            )
            output = (output * (1 - weight) + center * weight).flatten(-2)
        return output if self.output_proj is None else self.output_proj(output)

    def _offset_features(self, x: Tensor) -> Tensor:
        if self.offset_mask_dw is None:
            return x
        return self.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _at_centers(self, maps: Tensor) -> Tensor:
        """Takes from maps [N, H, W, C] the pixels under the kernel's centers, output-sized."""
        size = output_size(
            (maps.shape[1], maps.shape[2]),
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        if min(size) < 1:
            # The kernel is larger than the padded image: the operator says so.
            return maps
        for axis in (0, 1):
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) // 2
            # A kernel of even extent makes an output smaller or larger than the input.
            same = size[axis] == maps.shape[1 + axis] and self.padding[axis] == reach
            if same and self.stride[axis] == 1:
                continue
            centers = torch.arange(size[axis], device=maps.device) * self.stride[axis]
            centers = centers + (reach - self.padding[axis])
            # With more padding than the kernel's reach the outermost centers lie outside.
            maps = maps.index_select(1 + axis, centers.clamp(0, maps.shape[1 + axis] - 1))
        return maps

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"offset_scale={self.offset_scale}, remove_center={self.remove_center}"
            + ("" if self.output_proj is not None else ", without_pointwise=True")
        )


def _image_shape(length: int, shape: _Pair | None) -> _Pair:
    """Rows and columns of an image of ``length`` pixels; square unless ``shape`` says else."""
    if shape is None:
        # Not math.isqrt, as that breaks the graph of torch.compile(dynamic=True).
        side = int(math.sqrt(length))
        shape = (side, side)
    shape = read_pair("shape", shape, minimum=1)
    if shape[0] * shape[1] != length:
        raise ValueError(
            f"x has {length} pixels, which is not {shape[0]} x {shape[1]}: give shape=(H, W)"
        )
    return shape
