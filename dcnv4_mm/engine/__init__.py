"""What this package adds to mmengine's runner: safe loading of checkpoints, and hooks."""

from dcnv4_mm.engine.checkpoint_io import (
    convert_on_load,
    load_from_http,
    load_from_local,
    rename_classifier,
)
from dcnv4_mm.engine.hooks import StrictLoadHook

__all__ = [
    "StrictLoadHook",
    "convert_on_load",
    "load_from_http",
    "load_from_local",
    "rename_classifier",
]
