"""DCNv4 in place of convolutions, in networks of any library."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dcnv4_mm.layers._fx import fx_leaf
from dcnv4_mm.layers.drop_in.replace import MeanDCNv4, module_names, replace_modules
from dcnv4_mm.ops.arguments import read_int

__all__ = ["DCNv4Conv2d", "is_depthwise_7x7", "swap_convolutions"]

_Pair = tuple[int, int]
_MMCV_WRAPPERS = "mmcv.cnn.bricks.wrappers"


class DCNv4Conv2d(MeanDCNv4):
    """DCNv4 for maps (N, C, H, W), with the arguments and attributes of ``nn.Conv2d``.

    In configs of the OpenMMLab libraries it is ``dcnv4_mm.DCNv4``, as ``conv_cfg`` and as ``dcn``.
    A new layer is the mean of its window.

    Args:
        in_channels: Number of channels C.
        out_channels: The same number.
        kernel_size: Rows and columns of the grid of sampling points.
        stride: Step between output pixels.
        padding: How far the grid may reach over the border.
        dilation: Distance between the grid's points.
        groups: Number of DCNv4's groups G, a divisor of C. It does not restrict the projections,
            which mix all channels.
        bias: Whether the output projection has a bias.
        padding_mode: ``"zeros"``.
        group_channels: Channels of a group, instead of ``groups``: for ``conv_cfg``, beside which
            mmcv's ``ConvModule`` passes ``groups`` itself.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        dw_kernel_size: Size of a depthwise convolution before offsets and masks are predicted;
            odd, or ``None`` for none.
        center_feature_scale: Mixes the value itself into the output, by a learned weight per
            group and pixel.
        remove_center: Leaves out the grid's middle point.
        without_pointwise: Leaves out the value and output projections ("lightweight").
        device: Where the parameters are created; by default as for ``torch.nn.Conv2d``.
        dtype: Type of the parameters, likewise.

    Raises:
        TypeError: An argument is not a number, a pair of numbers or a bool, as it must be.
        ValueError: An argument is out of its range, or is one that DCNv4 has no counterpart of.

    Example:
        >>> DCNv4Conv2d(64, 64, 3, stride=2, padding=1, groups=4)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 7, 7])
    """

    transposed = False
    output_padding = (0, 0)
    padding_mode = "zeros"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | _Pair,
        stride: int | _Pair = 1,
        padding: int | _Pair = 0,
        dilation: int | _Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        group_channels: int | None = None,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        without_pointwise: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if in_channels != out_channels:
            raise ValueError(
                f"out_channels: expected in_channels = {in_channels}, got {out_channels}: DCNv4 "
                "does not change the number of channels, add a 1 x 1 convolution"
            )
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros', got {padding_mode!r}")
        if group_channels is not None:
            group_channels = read_int("group_channels", group_channels, minimum=1)
            if groups != 1 or in_channels % group_channels:
                raise ValueError(
                    f"group_channels: expected a divisor of in_channels = {in_channels}, without "
                    f"groups, got {group_channels} and groups = {groups}"
                )
            groups = in_channels // group_channels
        super().__init__(
            in_channels,
            groups=groups,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            offset_scale=offset_scale,
            dw_kernel_size=dw_kernel_size,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            output_bias=bias,
            without_pointwise=without_pointwise,
            device=device,
            dtype=dtype,
        )
        self.in_channels = self.out_channels = self.channels

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to maps (N, C, H, W), and keeps their memory format as nn.Conv2d does.

        A layer behind it may rely on that: some operators assume contiguous maps and are silently
        wrong for channels-last ones, mmcv 2.1's RoIAlign among them.
        """
        if x.dim() != 4:
            raise ValueError(f"x: expected (N, {self.channels}, H, W), got {tuple(x.shape)}")
        output = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if _is_channels_last(x):
            return output
        # Not contiguous(): it leaves the strides of a single pixel, which say channels-last.
        return output.clone(memory_format=torch.contiguous_format)


def _is_channels_last(x: Tensor) -> bool:
    """Whether torch's convolutions take maps (N, C, H, W) for channels-last, dense or not."""
    batch, channel, row, column = x.stride()
    _, channels, rows, columns = x.shape
    return (
        channel > 0
        and channel * channels <= column
        and column * columns <= row
        and row * rows <= batch
    )


def is_depthwise_7x7(name: str, convolution: nn.Conv2d) -> bool:
    """Whether a convolution is what ConvNeXt mixes pixels with."""
    return convolution.kernel_size == (7, 7) and _is_depthwise(convolution)


def swap_convolutions(
    model: nn.Module,
    select: Callable[[str, nn.Conv2d], bool] = is_depthwise_7x7,
    *,
    group_channels: int = 16,
    offset_scale: float = 1.0,
    dw_kernel_size: int | None = None,
) -> int:
    """Replaces convolutions by DCNv4 with 3 x 3 points.

    A depthwise one becomes the lightweight form, without projections, any other the full one.
    Stride, dilation, memory format and whether there is a bias stay. A convolution that is used
    under several names becomes one layer under these names. The names and weights of all other
    modules stay, so that the original's weights load into them (``strict=False``).

    Args:
        model: A network of any library, changed in place.
        select: Says by name and module which convolutions are replaced; by default the depthwise
            ones of 7 x 7. It is called for transposed convolutions, too.
        group_channels: Channels of a group.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        dw_kernel_size: Size of a depthwise convolution before offsets and masks are predicted;
            odd, or ``None`` for none.

    Returns:
        Number of convolutions replaced.

    Raises:
        ValueError: None is selected, or one that DCNv4 cannot stand for: it is transposed, its
            channels change or are not a multiple of ``group_channels``, it has groups but is not
            depthwise, it does not pad with zeros or its padding does not keep the size, it has
            hooks or parametrizations, its class adds to nn.Conv2d (a norm, an activation, fake
            quantization), it is lazy or complex, it has parameters in common with another module
            or is held in an attribute of one, or it is the model itself. The model is then
            unchanged.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, table 4 (ConvNeXt). Left open
        there and chosen here: groups of 16 channels as in FlashInternImage, no depthwise
        convolution in front of the offsets (the paper's fastest form), and a start as the mean of
        the window.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(32, 32, 7, padding=3, groups=32), nn.GELU())
        >>> swap_convolutions(block)
        1
    """
    group_channels = read_int("group_channels", group_channels, minimum=1)
    made: dict[nn.Module, nn.Module] = {}
    for module, (name, *_) in module_names(model).items():
        if isinstance(module, nn.ConvTranspose2d) and select(name, module):  # type: ignore[arg-type]
            raise ValueError(f"{name!r}: expected a convolution, got a transposed one: {module}")
        if isinstance(module, nn.Conv2d) and select(name, module):
            _check_convolution(name, module, group_channels)
            dilation = (module.dilation[0], module.dilation[1])
            made[module] = DCNv4Conv2d(
                module.in_channels,
                module.out_channels,
                3,
                stride=(module.stride[0], module.stride[1]),
                padding=dilation,
                dilation=dilation,
                group_channels=group_channels,
                bias=module.bias is not None,
                offset_scale=offset_scale,
                dw_kernel_size=dw_kernel_size,
                without_pointwise=_is_depthwise(module),
                device=module.weight.device,
                dtype=module.weight.dtype,
            )
    return replace_modules(model, made)


def _added_to_convolution(convolution: nn.Conv2d) -> list[str]:
    """Names of what a subclass of nn.Conv2d computes beyond a convolution.

    Hooks and parametrizations are not among it, as they are refused for every module.
    """
    kind = type(convolution)
    # mmcv's differs for empty tensors alone, and for a torch that is older than any we support.
    own_forward = kind.forward is not nn.Conv2d.forward and kind.__module__ != _MMCV_WRAPPERS
    added = ["a forward"] if own_forward else []
    added += [name for name, _ in convolution.named_children() if name != "parametrizations"]
    tensors: dict[str, Tensor] = dict(convolution.named_parameters(recurse=False))
    if "weight" in tensors:
        # Otherwise a hook computes the weight of others.
        tensors |= dict(convolution.named_buffers(recurse=False))
        added += [name for name in tensors if name not in ("weight", "bias")]
    return added


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    return convolution.groups == convolution.in_channels == convolution.out_channels


def _check_convolution(name: str, convolution: nn.Conv2d, group_channels: int) -> None:
    if is_lazy(convolution.weight):
        raise ValueError(f"{name!r}: expected known channels, got a lazy one: run the model once")
    if added := _added_to_convolution(convolution):
        raise ValueError(
            f"{name!r}: expected nn.Conv2d alone, got {type(convolution).__name__} with "
            f"{', '.join(added)} of its own, which would be lost"
        )
    if not convolution.weight.is_floating_point():
        raise ValueError(f"{name!r}: expected real weights, got {convolution.weight.dtype}")
    channels = convolution.in_channels
    if channels != convolution.out_channels or channels % group_channels:
        raise ValueError(
            f"{name!r}: expected as many channels out as in, a multiple of group_channels = "
            f"{group_channels}, got {channels} in and {convolution.out_channels} out; leave it out "
            "by `select`"
        )
    if convolution.groups != 1 and not _is_depthwise(convolution):
        raise ValueError(
            f"{name!r}: expected groups = 1, or groups = {channels}, got {convolution.groups}"
        )
    if convolution.padding_mode != "zeros":
        raise ValueError(
            f"{name!r}: expected padding_mode = 'zeros', got {convolution.padding_mode!r}"
        )
    kept = tuple(
        dilation * (size - 1) // 2
        for size, dilation in zip(convolution.kernel_size, convolution.dilation, strict=True)
    )
    if convolution.padding not in (kept, "same") or any(
        size % 2 == 0 for size in convolution.kernel_size
    ):
        raise ValueError(
            f"{name!r}: expected an odd kernel and the padding that keeps the size, {kept}, got "
            f"the kernel {convolution.kernel_size} and the padding {convolution.padding}"
        )
