"""A hook that logs how fast a model trains, with how much memory, and on which kernels."""

import resource
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from dcnv4_mm.ops.functional import backend_info
from dcnv4_mm.registry import HOOKS

__all__ = ["ThroughputHook"]


@HOOKS.register_module()
class ThroughputHook(Hook):
    """Logs the kernels in use when training begins, then speed and memory with every log line.

    ``images_per_s`` counts the images of all processes, waiting for data included. ``peak_gb`` is
    the most that this process took so far, of the GPU's memory or else of the machine's, in 10^9
    bytes.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.ThroughputHook")]
    """

    def before_train(self, runner: Runner) -> None:
        """Logs which kernels serve each operator on the model's device."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for op, serving in backend_info().items():
            runner.logger.info(f"{op} on {device}: {serving[device]}")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Hands the figures of a step to mmengine's log, by the time that its own hook took."""
        hub = runner.message_hub
        images = runner.train_dataloader.batch_sampler.batch_size * get_world_size()
        hub.update_scalar("train/images_per_s", images / hub.get_scalar("train/time").current())
        hub.update_scalar("train/peak_gb", _peak_bytes() / 1e9)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in units of 1024 bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
