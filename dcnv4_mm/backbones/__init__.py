"""Backbones in plain PyTorch."""

from dcnv4_mm.backbones.archs import ARCHS, DCNV3_ARCHS
from dcnv4_mm.backbones.flash_intern_image import FlashInternImage

__all__ = ["ARCHS", "DCNV3_ARCHS", "FlashInternImage"]
