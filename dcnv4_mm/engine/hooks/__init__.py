"""Hooks for mmengine's runner."""

from dcnv4_mm.engine.hooks.freeze_offsets import FreezeOffsetsHook
from dcnv4_mm.engine.hooks.non_finite import NonFiniteHook
from dcnv4_mm.engine.hooks.safe_checkpoint import SafeCheckpointHook
from dcnv4_mm.engine.hooks.seed_steps import SeedStepsHook
from dcnv4_mm.engine.hooks.strict_load import StrictLoadHook
from dcnv4_mm.engine.hooks.throughput import ThroughputHook

__all__ = [
    "FreezeOffsetsHook",
    "NonFiniteHook",
    "SafeCheckpointHook",
    "SeedStepsHook",
    "StrictLoadHook",
    "ThroughputHook",
]
