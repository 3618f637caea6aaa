"""DCNv4 in place of attention over an image's patches, in vision transformers of any library."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcnv4_mm.layers._fx import fx_leaf
from dcnv4_mm.layers.drop_in.patch_grid import PatchGrid
from dcnv4_mm.layers.drop_in.replace import MeanDCNv4, module_names, replace_modules
from dcnv4_mm.ops.arguments import read_int

__all__ = ["DCNv4Attention", "swap_attention"]

# What mmpretrain's and timm's attention applies behind its projection.
_AFTER = ("proj_drop", "gamma1", "out_drop")
# Where models say how many tokens stand in front of the patches: timm and mmpretrain.
_PREFIX_TOKENS = ("num_prefix_tokens", "num_extra_tokens")


class DCNv4Attention(MeanDCNv4):
    """DCNv4 for tokens (N, L, C), in place of self-attention over an image's patches.

    Tokens in front of the patches, such as a class token, have no location in the image: each gets
    the mean of the patches' results.

    Args:
        channels: Number of channels C, in and out.
        groups: Number of groups G, a divisor of ``channels``.
        patch_grid: Knows the rows and columns of the patches in a call.
        prefix_tokens: Number of tokens in front of the patches.
        arguments: Names of the arguments of the attention that is replaced.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        dw_kernel_size: Size of a depthwise convolution before offsets and masks are predicted;
            odd, or ``None`` for none.
        after: Layers behind the projection, by name, such as dropout.
        as_pair: Whether the result is a pair with ``None``, as ``nn.MultiheadAttention`` has it.
        uses: How often the model calls the layer for a batch of images.
        device: Where the parameters are created; by default as for ``torch.nn.Linear``.
        dtype: Type of the parameters, likewise.
    """

    # nn.TransformerEncoderLayer reads them: it then calls the layer instead of its own kernel.
    batch_first = True
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        patch_grid: PatchGrid,
        prefix_tokens: int,
        arguments: Sequence[str] = ("x",),
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        after: Mapping[str, nn.Module] | None = None,
        as_pair: bool = False,
        uses: int = 1,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            groups=groups,
            offset_scale=offset_scale,
            dw_kernel_size=dw_kernel_size,
            device=device,
            dtype=dtype,
        )
        self.patch_grid = patch_grid
        self.prefix_tokens = prefix_tokens
        self.arguments = tuple(arguments)
        self.after = tuple(after or ())
        for name, layer in (after or {}).items():
            self.add_module(name, layer)
        self.as_pair = as_pair
        self.uses = uses

    def __getattr__(self, name: str) -> Any:
        """As of ``nn.Module``; explains a missing attribute of ``nn.MultiheadAttention``."""
        if name == "in_proj_weight":
            # nn.TransformerEncoder reads it of its first layer if there is a padding mask.
            raise AttributeError(
                "in_proj_weight: DCNv4Attention has none, as it stands for self-attention over all "
                "patches: pass no src_key_padding_mask, or leave this attention out by `select`"
            )
        return super().__getattr__(name)

    @fx_leaf
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Applies the layer.

        Args:
            *args: (N, L, C), then the other arguments of the attention that is replaced: keys and
                values, which must be the same tensor, and what says that nothing is masked.
            **kwargs: The same by name.

        Returns:
            (N, L, C), or that and ``None``.

        Raises:
            ValueError: The call asks for what DCNv4 cannot do: attention to other tokens, or to
                some of them alone; or the tokens are not those of the images that the model's
                patch embedding was called with.
        """
        x = self._read_arguments(args, kwargs)
        if x.is_nested:
            # nn.TransformerEncoder makes them of tokens and a padding mask.
            raise ValueError("tokens: expected a dense tensor, got a nested one: pass no mask")
        if x.dim() != 3:
            raise ValueError(f"tokens: expected (N, L, {self.channels}), got {tuple(x.shape)}")
        shape = self.patch_grid.shape_of(self, x.shape[1], self.prefix_tokens, self.uses)
        patches = x[:, self.prefix_tokens :].unflatten(1, shape)
        output = super().forward(patches).flatten(1, 2)
        # The patch embedding may be frozen, and have no graph.
        self.patch_grid.keep_with(output)
        if self.prefix_tokens:
            mean = output.mean(1, keepdim=True).expand(-1, self.prefix_tokens, -1)
            output = torch.cat([mean, output], dim=1)
        for name in self.after:
            output = self.get_submodule(name)(output)
        return (output, None) if self.as_pair else output

    def _read_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if len(args) > len(self.arguments):
            raise TypeError(f"expected at most {len(self.arguments)} arguments, got {len(args)}")
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        x = given.pop(self.arguments[0], None)
        if not isinstance(x, Tensor):
            raise TypeError(f"{self.arguments[0]}: expected a tensor, got {type(x).__name__}")
        for name, argument in given.items():
            # Weights of attention, which need_weights asks for, are None in the result.
            harmless = argument is None or argument is False or argument is x
            if not harmless and name not in ("need_weights", "average_attn_weights"):
                expected = "the query itself" if name in ("key", "value") else "None or False"
                raise ValueError(
                    f"{name}: expected {expected}, as DCNv4 stands for self-attention over all "
                    f"patches, got {type(argument).__name__}: leave this attention out by `select`"
                )
        return x


def swap_attention(
    model: nn.Module,
    kind: type[nn.Module],
    select: Callable[[str, nn.Module], bool] = lambda name, attention: True,
    *,
    patch_embed: str | None = None,
    prefix_tokens: int | None = None,
    group_channels: int = 16,
    offset_scale: float = 1.0,
    dw_kernel_size: int | None = None,
) -> int:
    """Replaces self-attention over an image's patches by DCNv4, with projections.

    How the patches lie in the image follows from the output of the patch embedding in the same
    call, however the model is called. Dropout, stochastic depth and layer scale that an attention
    of mmpretrain or timm holds stay, and so do the names and weights of all other modules, so that
    the original's weights load into them (``strict=False``).

    Args:
        model: A vision transformer of any library; changed in place.
        kind: The class of attention that is replaced: mmpretrain's ``MultiheadAttention``, timm's
            ``Attention``, or ``nn.MultiheadAttention`` of torchvision's models. It must see all
            tokens of an image, not windows.
        select: Says by name and module which of them are replaced; by default all. Leave
            cross-attention and masked attention out.
        patch_embed: Name of the module that outputs maps (N, C, H, W) with one pixel per patch. By
            default the only convolution whose kernel is as large as its stride, and not 1 x 1.
        prefix_tokens: Number of tokens in front of the patches, such as a class token. By default
            as timm's, mmpretrain's and torchvision's models say.
        group_channels: Channels of a group.
        offset_scale: Factor on the grid, around its center, and on the offsets.
        dw_kernel_size: Size of a depthwise convolution before offsets and masks are predicted;
            odd, or ``None`` for none.

    Returns:
        Number of modules replaced.

    Raises:
        ValueError: The model has no such attention, or one that DCNv4 cannot stand for, or does
            not tell its patch embedding or its number of prefix tokens. It is then unchanged.

    Source:
        Xiong et al., "Efficient Deformable ConvNets", CVPR 2024, table 4 (ViT). Left open there
        and chosen here: as for convolutions, and that tokens outside of the image get the mean of
        all patches.
    """
    group_channels = read_int("group_channels", group_channels, minimum=1)
    names = module_names(model)
    grid = PatchGrid()
    made: dict[nn.Module, nn.Module] = {}
    for module, (name, *others) in names.items():
        if isinstance(module, kind) and select(name, module):
            channels = _attention_channels(name, module, group_channels)
            first = next(module.parameters())
            made[module] = DCNv4Attention(
                channels,
                groups=channels // group_channels,
                patch_grid=grid,
                prefix_tokens=_prefix_tokens(model) if prefix_tokens is None else prefix_tokens,
                arguments=list(inspect.signature(module.forward).parameters),
                offset_scale=offset_scale,
                dw_kernel_size=dw_kernel_size,
                after={n: layer for n, layer in module.named_children() if n in _AFTER},
                as_pair=isinstance(module, nn.MultiheadAttention),
                uses=1 + len(others),
                device=first.device,
                dtype=first.dtype,
            )
    embedding = _patch_embedding(model, patch_embed) if made else None
    count = replace_modules(model, made)
    if embedding is not None:
        embedding.register_forward_hook(grid.record)
    return count


def _patch_embedding(model: nn.Module, name: str | None) -> nn.Module:
    if name is not None:
        return model.get_submodule(name)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride
        and max(module.kernel_size) > 1
    }
    if len(found) != 1:
        raise ValueError(
            "patch_embed: expected the name of the module that outputs one pixel per patch, as "
            f"the model has not one convolution that does so, but {len(found)}: {list(found)}"
        )
    return next(iter(found.values()))


def _prefix_tokens(model: nn.Module) -> int:
    for module in model.modules():
        for name in _PREFIX_TOKENS:
            if isinstance(number := getattr(module, name, None), int):
                return number
    # torchvision's.
    if isinstance(getattr(model, "class_token", None), nn.Parameter):
        return 1
    raise ValueError(
        "prefix_tokens: expected the number of tokens in front of the patches, such as a class "
        f"token, which a {type(model).__name__} does not tell; got None"
    )


def _attention_channels(name: str, attention: nn.Module, group_channels: int) -> int:
    """Number of channels in and out of an attention of torch, mmpretrain or timm."""
    projection = getattr(attention, "proj", None)
    if isinstance(attention, nn.MultiheadAttention):
        channels = attention.embed_dim
        problem = (
            "batch_first = True, got False"
            if not attention.batch_first
            else "keys and values with as many channels as queries"
            if not attention._qkv_same_embed_dim
            else "attention to the tokens alone, got add_bias_kv or add_zero_attn"
            if attention.bias_k is not None or attention.add_zero_attn
            else ""
        )
    elif isinstance(projection, nn.Linear):
        channels = projection.out_features
        inputs = getattr(getattr(attention, "qkv", None), "in_features", channels)
        problem = (
            "all tokens of an image, got windows"
            if hasattr(attention, "window_size")
            else "queries, keys and values of all tokens from one linear layer `qkv`"
            if not isinstance(getattr(attention, "qkv", None), nn.Linear)
            else "no shortcut of the values, got v_shortcut = True"
            if getattr(attention, "v_shortcut", False)
            else f"as many channels out as in, got {inputs} in and {channels} out"
            if inputs != channels
            else ""
        )
    else:
        channels, problem = 0, "nn.MultiheadAttention, or a linear layer `proj` as in timm"
    if not problem and channels % group_channels:
        problem = (
            f"channels that are a multiple of group_channels = {group_channels}, got {channels}"
        )
    if problem:
        raise ValueError(f"{name!r}: expected {problem}, in {type(attention).__name__}")
    return channels
