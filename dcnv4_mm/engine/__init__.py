"""Additions to mmengine: safe reading and atomic writing of checkpoints, and hooks."""

from dcnv4_mm._missing import naming_extra

with naming_extra("dcnv4_mm.engine", "mim"):
    from dcnv4_mm.engine.atomic_writes import AtomicLocalBackend, find_complete_checkpoint
    from dcnv4_mm.engine.checkpoint_io import load_checkpoint, load_from_http, load_from_local
    from dcnv4_mm.engine.hooks import StrictLoadHook
    from dcnv4_mm.engine.mmengine_io import install

__all__ = [
    "AtomicLocalBackend",
    "StrictLoadHook",
    "find_complete_checkpoint",
    "install",
    "load_checkpoint",
    "load_from_http",
    "load_from_local",
]
