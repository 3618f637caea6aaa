"""A hook that logs training throughput, peak memory, and the kernels in use."""

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
    """Logs the kernels in use when training begins, and throughput and memory in every log line.

    ``images_per_s`` counts the images of all processes, including the time to load data.
    ``peak_gb`` is the peak memory of this process so far in 10^9 bytes, on the GPU if there is one.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.ThroughputHook")]
    """

    def before_train(self, runner: Runner) -> None:
        """Logs the kernels of each operator on the model's device."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for op, serving in backend_info().items():
            runner.logger.info(f"{op} on {device}: {serving[device]}")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Adds the values to mmengine's log, from the step time that its own hook has measured."""
        hub = runner.message_hub
        images = runner.train_dataloader.batch_sampler.batch_size * get_world_size()
        hub.update_scalar("train/images_per_s", images / hub.get_scalar("train/time").current())
        hub.update_scalar("train/peak_gb", _peak_bytes() / 1e9)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in units of 1024 bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
