"""Mixed precision in bfloat16 on every device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from dcnv4_mm.registry import OPTIM_WRAPPERS

__all__ = ["BFloat16OptimWrapper"]


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """mmengine's ``OptimWrapper`` with the forward pass under bfloat16 autocast.

    bfloat16 has the exponent range of float32, so that no loss scaling is needed. mmengine's own
    ``AmpOptimWrapper`` requires a GPU; this wrapper also works on the CPU. Validation runs in
    bfloat16 with ``val_cfg.fp16=True`` and ``test_cfg.fp16=True``, which mean bfloat16 on the CPU.

    Example:
        >>> optim_wrapper = dict(type="dcnv4_mm.BFloat16OptimWrapper")
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The context of a training step: gradient accumulation, and autocast."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
