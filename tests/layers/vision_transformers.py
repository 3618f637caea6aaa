"""A small vision transformer, with attention or with DCNv4 in its place."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dcnv4_mm.layers import DropPath, swap_attention


class Attention(nn.Module):
    """As in timm and mmpretrain, with what belongs to the branch."""

    def __init__(self, channels):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(0.5)
        self.out_drop = DropPath(0.5)
        self.gamma1 = nn.Linear(channels, channels, bias=False)

    def forward(self, x, attn_mask=None, is_causal=False):
        raise NotImplementedError


class Transformer(nn.Module):
    """A class token in front of patches of 8 x 8 pixels, and attention twice."""

    num_prefix_tokens = 1

    def __init__(self, make, channels=64):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.blocks = nn.ModuleList(make(channels) for _ in range(2))
        self.checkpointed = None

    def embed(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)

    def forward_features(self, x):
        for block in self.blocks:
            x = x + (
                block(x)
                if self.checkpointed is None
                else checkpoint(block, x, use_reentrant=self.checkpointed)
            )
        return x

    def forward(self, images):
        return self.forward_features(self.embed(images))


def swapped(make=Attention, seed=0):
    """A model with DCNv4 whose output depends on how the patches lie in the image."""
    torch.manual_seed(seed)
    model = Transformer(make).eval()
    assert swap_attention(model, type(make(64))) == 2
    for layer in model.blocks:
        nn.init.normal_(layer.offset_mask.weight, std=0.1)
    return model


def images(rows, columns, batch=1):
    return torch.randn(batch, 3, 8 * rows, 8 * columns)
