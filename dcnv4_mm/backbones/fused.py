"""Blocks of FlashInternImage for inference, with fewer and larger operations."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dcnv4_mm.backbones.blocks import Block
from dcnv4_mm.layers import DCNv4
from dcnv4_mm.ops.functional import dcnv4

__all__ = ["FusedBlock", "check_fusible", "fuse_block"]


# Layers of which only the parameters are read.
_MERGED = ("value_proj", "offset_mask", "output_proj", "fc1", "fc2")


class FusedBlock(nn.Module):
    """A pre-norm block with DCNv4 and no depthwise convolution: the same function, for inference.

    One matrix product gives value, offsets and masks, of which the operator reads its parts in
    place. Layer scales are part of the projections behind them, and a residual is added by the
    matrix product of its branch.

    Args:
        block: The block; norms and the MLP's first layer are shared with it.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        mlp = block.mlp
        dcn: Any = block.dcn
        self.norm1, self.norm2, self.act = block.norm1, block.norm2, mlp.act
        self.projection = _stacked(dcn.value_proj, dcn.offset_mask)
        self.output_proj = _scaled(dcn.output_proj, block.gamma1)
        self.fc1, self.fc2 = mlp.fc1, _scaled(mlp.fc2, block.gamma2)
        self.channels: int = dcn.channels
        names = ("groups", "kernel_size", "padding", "offset_scale", "remove_center")
        self.sampling: Mapping[str, Any] = {name: getattr(dcn, name) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, H, W, C) to maps of the same shape."""
        tokens = x.flatten(0, 2)
        both = self.projection(self.norm1(tokens))
        both = both.view(*x.shape[:3], both.shape[-1])  # no -1: a batch may be empty
        value, offset_mask = both.split([self.channels, both.shape[-1] - self.channels], dim=-1)
        mixed = dcnv4(value, offset_mask, **self.sampling).flatten(0, 2)
        tokens = _add_product(tokens, mixed, self.output_proj)
        hidden = self.act(self.fc1(self.norm2(tokens)))
        # Memory of this call alone, unless autograd needs it.
        tokens = _add_product(tokens, hidden, self.fc2, in_place=not tokens.requires_grad)
        return tokens.view(x.shape)


def _add_product(x: Tensor, y: Tensor, linear: nn.Linear, *, in_place: bool = False) -> Tensor:
    """``x + linear(y)`` for x and y of two axes."""
    # Autocast would round x, which it leaves alone in a sum.
    bias: Tensor | None = linear.bias
    if bias is not None or torch.is_autocast_enabled(x.device.type):
        return x + linear(y)
    weight = linear.weight.t()
    return x.addmm_(y, weight) if in_place else torch.addmm(x, y, weight)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _stacked(*layers: nn.Linear) -> nn.Linear:
    """A layer whose outputs are those of all layers, one after the other."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    return _linear(weight, torch.cat([layer.bias.detach() for layer in layers]))


def _scaled(layer: nn.Linear, scale: Tensor | None) -> nn.Linear:
    """The layer times a scale of each output channel."""
    if scale is None:
        return layer
    bias = None if layer.bias is None else layer.bias.detach() * scale.detach()
    return _linear(layer.weight.detach() * scale.detach().unsqueeze(1), bias)


def _scaled_norm(norm: nn.LayerNorm, scale: Tensor) -> nn.LayerNorm:
    with torch.device("meta"):
        scaled = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    scaled.weight = nn.Parameter(norm.weight.detach() * scale.detach(), requires_grad=False)
    scaled.bias = nn.Parameter(norm.bias.detach() * scale.detach(), requires_grad=False)
    return scaled


def check_fusible(model: nn.Module) -> None:
    """Refuses a model whose modules do more than their parameters say.

    Raises:
        ValueError: A module is no longer of the class it was built as, such as with an adapter or
            a parametrization, or it has forward hooks, which would no longer be called.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"fuse: {name or 'the model'} has forward hooks: remove them first")
        if name.rpartition(".")[2] in _MERGED and type(module) is not nn.Linear:
            raise ValueError(
                f"fuse: {name}: expected a torch.nn.Linear, got {type(module).__name__}: merge "
                "adapters and parametrizations into the weights first"
            )


def fuse_block(block: Block) -> nn.Module:
    """A block for inference that computes the same; may change the block itself."""
    dcn: Any = block.dcn
    norms_behind = block.post_norm or block.res_post_norm
    if isinstance(dcn, DCNv4) and not norms_behind:  # noqa: SIM102
        if dcn.offset_mask_dw is None and dcn.center_feature_scale_proj is None:
            return FusedBlock(block)
    if block.gamma1 is None or block.gamma2 is None:
        return block
    if block.post_norm:
        block.norm1 = _scaled_norm(block.norm1, block.gamma1)
        block.norm2 = _scaled_norm(block.norm2, block.gamma2)
    else:
        dcn.output_proj = _scaled(dcn.output_proj, block.gamma1)
        block.mlp.fc2 = _scaled(block.mlp.fc2, block.gamma2)
    block.gamma1 = block.gamma2 = None
    return block
