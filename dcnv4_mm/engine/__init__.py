"""What this package adds to mmengine: safe reading and writing of checkpoints, and hooks."""

from dcnv4_mm.engine.checkpoint_io import (
    convert_on_load,
    load_from_http,
    load_from_local,
    rename_classifier,
)
from dcnv4_mm.engine.hooks import StrictLoadHook
from dcnv4_mm.engine.saving import WholeFileBackend, find_whole_checkpoint

__all__ = [
    "StrictLoadHook",
    "WholeFileBackend",
    "convert_on_load",
    "find_whole_checkpoint",
    "load_from_http",
    "load_from_local",
    "rename_classifier",
]
