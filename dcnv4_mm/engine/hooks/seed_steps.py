"""A hook that makes a resumed training identical to one without interruption."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from dcnv4_mm.registry import HOOKS

__all__ = ["SeedStepsHook"]


@HOOKS.register_module()
class SeedStepsHook(Hook):
    """Seeds every training step by the seed, the rank and the step.

    mmengine seeds once, when a run starts; a resumed run starts with the same random numbers again,
    and its losses differ from those of an uninterrupted run. With this hook they are equal, as far
    as the kernels are deterministic. It stores nothing and works with any checkpoint. Augmentations
    differ between processes and between epochs.

    Raises:
        ValueError: The config sets no seed, or sets ``diff_rank_seed``.

    Note:
        Data loader workers restart in every epoch, also persistent ones. In iteration-based
        training mmengine reads the data of all earlier steps again. Datasets that keep earlier
        samples, such as a cached mosaic, are not covered.

    Example:
        >>> randomness = dict(seed=0)
        >>> custom_hooks = [dict(type="dcnv4_mm.SeedStepsHook")]
    """

    # Before hooks that use random numbers.
    priority = "VERY_HIGH"

    def before_run(self, runner: Runner) -> None:
        """Checks that the order of the data is the same in every run."""
        randomness = runner._randomness_cfg
        if randomness.get("seed") is None:
            raise ValueError("SeedStepsHook needs a seed: set randomness=dict(seed=0)")
        if randomness.get("diff_rank_seed"):
            raise ValueError(
                "with randomness.diff_rank_seed the order of the data differs in every run: remove "
                "it; SeedStepsHook seeds each process differently"
            )

    def before_train(self, runner: Runner) -> None:
        """Saves the workers' init function, or seeds each step of iteration-based training."""
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = _seeding(loop.dataloader_iterator, runner)
        self._start_worker = loop.dataloader.worker_init_fn

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds an epoch and its data loader workers."""
        loop = runner.train_loop
        # Its workers run since it was built; mmengine reads the earlier data again on resuming.
        if isinstance(loop, IterBasedTrainLoop):
            return
        key = _key(runner)
        _seed(*key)
        if loop.dataloader.num_workers:
            # Persistent workers would continue with the previous epoch's random state.
            loop.dataloader._iterator = None
            loop.dataloader.worker_init_fn = partial(_start, self._start_worker, key)


def _seeding(batches: Iterator[Any], runner: Runner) -> Iterator[Any]:
    """Seeds before each batch, whose data may be loaded in this process."""
    while True:
        _seed(*_key(runner))
        yield next(batches)


def _start(usual: Callable[[int], None] | None, key: tuple[int, ...], worker: int) -> None:
    """Seeds a data loader worker."""
    if usual is not None:
        usual(worker)
    # SeedSequence ignores zeros at the end.
    _seed(*key, worker + 1)


def _key(runner: Runner) -> tuple[int, ...]:
    return runner._randomness_cfg["seed"], get_rank(), runner.iter


def _seed(*key: int) -> None:
    """Seeds all generators of this process; different keys give independent seeds."""
    first, second, third = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)
