"""DCNv4 in place of convolutions and attention, in networks of any library."""

from dcnv4_mm.layers.drop_in.attention import DCNv4Attention, swap_attention
from dcnv4_mm.layers.drop_in.convolutions import (
    DCNv4Conv2d,
    is_depthwise_7x7,
    swap_convolutions,
)

__all__ = [
    "DCNv4Attention",
    "DCNv4Conv2d",
    "is_depthwise_7x7",
    "swap_attention",
    "swap_convolutions",
]
