"""DCNv4 and multi-scale deformable attention, as a kernel for the loader of Hugging Face's Hub."""

from . import layers
from .dcnv4_mm.ops.functional import (
    backend_info,
    bev_cross_attn,
    dcnv4,
    flash_deform_attn,
    ms_deform_attn,
)

__all__ = [
    "backend_info",
    "bev_cross_attn",
    "dcnv4",
    "flash_deform_attn",
    "layers",
    "ms_deform_attn",
]
