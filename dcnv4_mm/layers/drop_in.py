"""DCNv4 in the place of convolutions and attention, in networks of any library."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcnv4_mm.layers.dcnv4 import DCNv4

__all__ = [
    "DCNv4Attention",
    "DCNv4Conv2d",
    "is_depthwise_7x7",
    "swap_attention",
    "swap_convolutions",
]


class _DropIn(DCNv4):
    """A layer that starts as the mean of its window.

    A new DCNv4 puts out zeros, of which the norm behind it would make a gradient a thousand times
    as large as usual.
    """

    def reset_parameters(self) -> None:
        """As the parent, with masks of one divided by the number of points."""
        super().reset_parameters()
        points = self.kernel_size[0] * self.kernel_size[1]
        masks = self.offset_mask.bias.detach()[: 3 * self.groups * points]
        masks.view(self.groups, 3 * points)[:, 2 * points :] = 1 / points

    def init_weights(self) -> None:
        """By this name mmengine calls it, after a host's own rules for linear layers."""
        self.reset_parameters()


class DCNv4Conv2d(_DropIn):
    """DCNv4 for maps (N, C, H, W), in the place of a convolution; arguments as in DCNv4."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Applies the layer to maps (N, C, H, W), and keeps their memory format as nn.Conv2d does.

        A layer behind it may rely on that: some operators read a map by its address alone and are
        silently wrong for channels-last ones, mmcv 2.1's RoIAlign among them.
        """
        output = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # Channels next to each other, whatever the other strides: what torch's convolutions take
        # for channels-last, too.
        return output if x.stride(1) < x.stride(3) else output.contiguous()


class DCNv4Attention(_DropIn):
    """DCNv4 for tokens (N, L, C), in the place of self-attention over an image's patches.

    Tokens in front of the patches, such as a class token, have no place in the image: each gets the
    mean of the patches' results.

    Args:
        channels: Number of channels C, in and out.
        groups: Number of groups G, a divisor of ``channels``.
        offset_scale: See :class:`~dcnv4_mm.layers.DCNv4`.
        dw_kernel_size: See there.
        after: Layers behind the projection, by name, such as dropout.
        as_pair: Whether the result is a pair with ``None``, as ``nn.MultiheadAttention`` has it.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        after: Mapping[str, nn.Module] | None = None,
        as_pair: bool = False,
    ) -> None:
        super().__init__(
            channels, groups=groups, offset_scale=offset_scale, dw_kernel_size=dw_kernel_size
        )
        self.image_shape: tuple[int, int] | None = None
        self.after = tuple(after or ())
        for name, layer in (after or {}).items():
            self.add_module(name, layer)
        self.as_pair = as_pair

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        """Applies the layer.

        Args:
            x: (N, L, C); other arguments, keys and values that are x again, are not looked at.

        Returns:
            (N, L, C), or that and ``None``.

        Raises:
            ValueError: There are fewer tokens than ``image_shape`` has patches, or it is not set.
        """
        if self.image_shape is None or x.shape[1] < self.image_shape[0] * self.image_shape[1]:
            raise ValueError(
                f"image_shape must be (rows, columns) of the patches among {x.shape[1]} tokens, "
                f"got {self.image_shape}: call the model that swap_attention has changed"
            )
        extra = x.shape[1] - self.image_shape[0] * self.image_shape[1]
        output = super().forward(x[:, extra:], self.image_shape)
        if extra:
            mean = output.mean(1, keepdim=True).expand(-1, extra, -1)
            output = torch.cat([mean, output], dim=1)
        for name in self.after:
            output = self.get_submodule(name)(output)
        return (output, None) if self.as_pair else output


def is_depthwise_7x7(name: str, convolution: nn.Conv2d) -> bool:
    """Whether a convolution is what ConvNeXt mixes pixels with."""
    return convolution.kernel_size == (7, 7) and _is_depthwise(convolution)


def swap_convolutions(
    model: nn.Module,
    select: Callable[[str, nn.Conv2d], bool] = is_depthwise_7x7,
    *,
    group_width: int = 16,
    offset_scale: float = 1.0,
    dw_kernel_size: int | None = None,
) -> int:
    """Puts DCNv4 with 3 x 3 points in the place of convolutions.

    A depthwise one becomes the lightweight form, without projections, any other the full one. The
    names and weights of all other modules stay, so that the original's weights load into them
    (``strict=False``).

    Args:
        model: A network of any library, changed in place.
        select: Says by name and module which convolutions are replaced; by default the depthwise
            ones of 7 x 7.
        group_width: Channels of a group.
        offset_scale: See :class:`~dcnv4_mm.layers.DCNv4`.
        dw_kernel_size: See there.

    Returns:
        Number of convolutions replaced.

    Raises:
        ValueError: None is selected, or one that DCNv4 cannot stand for: its channels change or
            are no multiple of ``group_width``, its padding does not keep the size, or it is the
            model itself. The model is then unchanged.

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
    made: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and select(name, module):
            _check_convolution(name, module, group_width)
            made[name] = DCNv4Conv2d(
                module.in_channels,
                groups=module.in_channels // group_width,
                stride=(module.stride[0], module.stride[1]),
                offset_scale=offset_scale,
                dw_kernel_size=dw_kernel_size,
                without_pointwise=_is_depthwise(module),
            )
    return _replace(model, made)


def swap_attention(
    model: nn.Module,
    kind: type[nn.Module],
    *,
    patch_size: int,
    group_width: int = 16,
    offset_scale: float = 1.0,
    dw_kernel_size: int | None = None,
) -> int:
    """Puts DCNv4, with projections, in the place of self-attention over an image's patches.

    How the tokens lie in the image follows from the size of the images that the model is called
    with. Dropout, stochastic depth and layer scale that an attention of mmpretrain or timm holds
    stay, and so do the names and weights of all other modules, so that the original's weights load
    into them (``strict=False``).

    Args:
        model: A vision transformer of any library, called with images (N, C, H, W); changed in
            place.
        kind: The class of attention that is replaced: mmpretrain's ``MultiheadAttention``, timm's
            ``Attention``, or ``nn.MultiheadAttention`` of torchvision's models. It must see all
            tokens of an image, not windows.
        patch_size: Side of a patch in pixels.
        group_width: Channels of a group.
        offset_scale: See :class:`~dcnv4_mm.layers.DCNv4`.
        dw_kernel_size: See there.

    Returns:
        Number of modules replaced.

    Raises:
        ValueError: The model has no such attention, or one that DCNv4 cannot stand for. It is then
            unchanged.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, table 4 (ViT). Left open there
        and chosen here: as for convolutions, and that tokens outside of the image get the mean of
        all patches.
    """
    made: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            channels = _attention_channels(name, module, group_width)
            # mmpretrain's and timm's keep behind the projection what belongs to the branch.
            after = ("proj_drop", "gamma1", "out_drop")
            made[name] = DCNv4Attention(
                channels,
                groups=channels // group_width,
                offset_scale=offset_scale,
                dw_kernel_size=dw_kernel_size,
                after={n: layer for n, layer in module.named_children() if n in after},
                as_pair=isinstance(module, nn.MultiheadAttention),
            )
    count = _replace(model, made)
    model.register_forward_pre_hook(partial(_tell_image_shape, patch_size))
    return count


def _tell_image_shape(patch_size: int, model: nn.Module, arguments: tuple[Any, ...]) -> None:
    height, width = arguments[0].shape[-2:]
    for module in model.modules():
        if isinstance(module, DCNv4Attention):
            module.image_shape = (-(-height // patch_size), -(-width // patch_size))


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    return convolution.groups == convolution.in_channels == convolution.out_channels


def _check_convolution(name: str, convolution: nn.Conv2d, group_width: int) -> None:
    channels = convolution.in_channels
    if channels != convolution.out_channels or channels % group_width:
        raise ValueError(
            f"{name!r} must have as many channels out as in, a multiple of group_width = "
            f"{group_width}, got {channels} in and {convolution.out_channels} out"
        )
    kept = tuple(
        dilation * (size - 1) // 2
        for size, dilation in zip(convolution.kernel_size, convolution.dilation, strict=True)
    )
    if convolution.padding not in (kept, "same") or any(
        s % 2 == 0 for s in convolution.kernel_size
    ):
        raise ValueError(
            f"{name!r} must have an odd kernel and the padding that keeps the size, {kept}, got "
            f"the kernel {convolution.kernel_size} and the padding {convolution.padding}"
        )


def _attention_channels(name: str, attention: nn.Module, group_width: int) -> int:
    """Number of channels in and out of an attention of torch, mmpretrain or timm."""
    if isinstance(attention, nn.MultiheadAttention):
        fits = attention.batch_first
        channels = attention.embed_dim
    else:
        projection = getattr(attention, "proj", None)
        fits = isinstance(projection, nn.Linear) and not getattr(attention, "v_shortcut", False)
        fits = fits and not hasattr(attention, "window_size")
        channels = projection.out_features if isinstance(projection, nn.Linear) else 0
    if not fits or channels % group_width:
        raise ValueError(
            f"{name!r} must be self-attention over all tokens (N, L, C), with C a multiple of "
            f"group_width = {group_width}, got {attention}"
        )
    return channels


def _replace(model: nn.Module, made: Mapping[str, nn.Module]) -> int:
    """Puts modules in the place of others, with their mode, device and dtype."""
    if not made or "" in made:
        raise ValueError(
            f"no module inside of this {type(model).__name__} is one to replace: see the arguments"
        )
    for name, module in made.items():
        old = model.get_submodule(name)
        first = next(old.parameters())
        module.to(device=first.device, dtype=first.dtype).train(old.training)
        for parameter in module.parameters():
            parameter.requires_grad_(first.requires_grad)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module)
    return len(made)
