"""A hook by which a resumed training goes on exactly as it would have without the stop."""

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
    """Makes the random numbers of a training step depend on seed, process and step alone.

    mmengine seeds once, when a run starts; one that resumes begins with these first numbers again,
    and its losses part from those of a run that was never stopped. With this hook they are equal,
    as far as the kernels are deterministic. Nothing is saved for it: it works with any checkpoint.
    No two processes, and no two epochs, see the same augmentations.

    Raises:
        ValueError: The config sets no seed, or sets ``diff_rank_seed``.

    Note:
        Data workers start anew in every epoch, persistent ones too. In training by iterations
        mmengine reads the data of all earlier steps again. Data sets that remember earlier samples,
        as cached mosaics do, are not covered.

    Example:
        >>> randomness = dict(seed=0)
        >>> custom_hooks = [dict(type="dcnv4_mm.SeedStepsHook")]
    """

    # Before hooks that draw random numbers.
    priority = "VERY_HIGH"

    def before_run(self, runner: Runner) -> None:
        """Checks that the order of the data is the same in every start."""
        randomness = runner._randomness_cfg
        if randomness.get("seed") is None:
            raise ValueError("SeedStepsHook needs a seed: set randomness=dict(seed=0)")
        if randomness.get("diff_rank_seed"):
            raise ValueError(
                "with randomness.diff_rank_seed the order of the data differs in every start: "
                "leave it out; SeedStepsHook itself gives each process numbers of its own"
            )

    def before_train(self, runner: Runner) -> None:
        """Notes how the data workers start, or seeds each step of a training by iterations."""
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = _seeding(loop.dataloader_iterator, runner)
        self._start_worker = loop.dataloader.worker_init_fn

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds an epoch and its data workers."""
        loop = runner.train_loop
        # Its workers run since it was built, and are brought up to date by reading the data again.
        if isinstance(loop, IterBasedTrainLoop):
            return
        key = _key(runner)
        _seed(*key)
        if loop.dataloader.num_workers:
            # Persistent workers would go on with the numbers of the epoch before.
            loop.dataloader._iterator = None
            loop.dataloader.worker_init_fn = partial(_start, self._start_worker, key)


def _seeding(batches: Iterator[Any], runner: Runner) -> Iterator[Any]:
    """Seeds before each batch: the data may be loaded in this process, then the step follows."""
    while True:
        _seed(*_key(runner))
        yield next(batches)


def _start(usual: Callable[[int], None] | None, key: tuple[int, ...], worker: int) -> None:
    """Starts a data worker."""
    if usual is not None:
        usual(worker)
    # Zeros at the end would change nothing.
    _seed(*key, worker + 1)


def _key(runner: Runner) -> tuple[int, ...]:
    return runner._randomness_cfg["seed"], get_rank(), runner.iter


def _seed(*key: int) -> None:
    """Seeds all generators of this process with numbers that are unrelated between keys."""
    first, second, third = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)
