"""The original project's checkpoints: safe reading, key mappings, loading and export."""

from dcnv4_mm.checkpoints.loading import load_released, to_released
from dcnv4_mm.checkpoints.rules import ConversionReport, KeyRule, convert

__all__ = ["ConversionReport", "KeyRule", "convert", "load_released", "to_released"]
