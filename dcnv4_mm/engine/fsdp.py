"""Fully sharded data parallel training (FSDP) by mmengine's strategy."""

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.optim import BaseOptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from dcnv4_mm.backbones.blocks import Block
from dcnv4_mm.registry import STRATEGIES

__all__ = ["FSDPStrategy", "wrap_blocks"]


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """mmengine's ``FSDPStrategy`` with two fixes.

    mmengine 0.10.7 clips the gradients of each process by the norm of its own shards, and cannot
    load an optimizer's state in torch 2.1 or later.

    Example:
        >>> runner_type = "FlexibleRunner"
        >>> strategy = dict(
        ...     type="dcnv4_mm.FSDPStrategy",
        ...     model_wrapper=dict(auto_wrap_policy="dcnv4_mm.engine.fsdp.wrap_blocks"),
        ...     state_dict_cfg="full",
        ... )
    """

    def build_optim_wrapper(self, *args: Any, **kwargs: Any) -> BaseOptimWrapper:
        """Builds the optimizer; gradients are clipped by the norm over all processes."""
        optim_wrapper = super().build_optim_wrapper(*args, **kwargs)

        def clip(_: list[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> Tensor:
            return self.model.clip_grad_norm_(max_norm, norm_type)

        if getattr(optim_wrapper, "clip_func", None) is torch.nn.utils.clip_grad_norm_:
            optim_wrapper.clip_func = clip
        return optim_wrapper

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimizer's state; each process keeps its shard."""
        optimizer = self.optim_wrapper.optimizer
        shards = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(shards)


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """An ``auto_wrap_policy`` for FSDP: each block of a FlashInternImage is sharded on its own.

    The parameters outside the backbone form one more shard: the hosts' heads use some of them
    without calling the module that holds them, which FSDP does not support.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks to recurse into the module, or to wrap it.
        nonwrapped_numel: Number of its parameters that are not wrapped; not used.

    Returns:
        Whether to recurse, or to wrap.
    """
    return recurse or isinstance(module, Block)
