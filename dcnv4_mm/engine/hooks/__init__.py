"""Hooks for mmengine's runner."""

from dcnv4_mm.engine.hooks.freeze_offsets import FreezeOffsetsHook
from dcnv4_mm.engine.hooks.strict_load import StrictLoadHook

__all__ = ["FreezeOffsetsHook", "StrictLoadHook"]
