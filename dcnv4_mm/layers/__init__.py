"""Layers in plain PyTorch."""

from dcnv4_mm.layers.basic import DropPath, channels_first
from dcnv4_mm.layers.dcnv3 import DCNv3
from dcnv4_mm.layers.dcnv4 import DCNv4
from dcnv4_mm.layers.drop_in import DCNv4Conv2d, swap_attention, swap_convolutions
from dcnv4_mm.layers.flash_deform_attn import FlashDeformAttn
from dcnv4_mm.layers.norm import LN2d

__all__ = [
    "DCNv3",
    "DCNv4",
    "DCNv4Conv2d",
    "DropPath",
    "FlashDeformAttn",
    "LN2d",
    "channels_first",
    "swap_attention",
    "swap_convolutions",
]
