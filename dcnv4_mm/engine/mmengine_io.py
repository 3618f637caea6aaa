"""Installation of this package's checkpoint loaders and file backend in mmengine."""

from mmengine.fileio import io, register_backend
from mmengine.runner import CheckpointLoader

from dcnv4_mm.engine.atomic_writes import AtomicLocalBackend
from dcnv4_mm.engine.checkpoint_io import load_from_http, load_from_local

__all__ = ["install"]


def install() -> None:
    """Makes mmengine read checkpoints safely and write local files atomically, in this process.

    It replaces mmengine's checkpoint loaders for local files and http addresses, and its local file
    backend; calling it again changes nothing. Our tools call it, and so do
    :class:`~dcnv4_mm.engine.hooks.StrictLoadHook` and
    :class:`~dcnv4_mm.engine.hooks.SafeCheckpointHook` when a run starts.

    Example:
        >>> install()
        >>> CheckpointLoader._get_checkpoint_loader("epoch_1.pth") is load_from_local
        True
    """
    register_backend("local", AtomicLocalBackend, prefixes="", force=True)
    # mmengine keeps the backends that it has built.
    io.backend_instances.clear()
    for prefixes, loader in (("", load_from_local), (("http://", "https://"), load_from_http)):
        CheckpointLoader.register_scheme(prefixes, loader, force=True)
