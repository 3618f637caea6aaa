"""Additions to mmengine: safe reading and atomic writing of checkpoints, and hooks."""

from dcnv4_mm.engine.checkpoint_io import (
    convert_on_load,
    load_checkpoint,
    load_from_http,
    load_from_local,
    rename_classifier,
)
from dcnv4_mm.engine.hooks import StrictLoadHook
from dcnv4_mm.engine.mmengine_io import install
from dcnv4_mm.engine.saving import AtomicLocalBackend, find_whole_checkpoint

__all__ = [
    "AtomicLocalBackend",
    "StrictLoadHook",
    "convert_on_load",
    "find_whole_checkpoint",
    "install",
    "load_checkpoint",
    "load_from_http",
    "load_from_local",
    "rename_classifier",
]
