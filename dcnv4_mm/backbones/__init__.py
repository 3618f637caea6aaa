"""Backbones in plain PyTorch."""

from dcnv4_mm.backbones.flash_intern_image import ARCHS, FlashInternImage

__all__ = ["ARCHS", "FlashInternImage"]
