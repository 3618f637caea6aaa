"""A learning rate that falls polynomially from the first iteration on, warmed up linearly."""

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from torch.optim import Optimizer

from dcnv4_mm.registry import PARAM_SCHEDULERS

__all__ = ["PolyWarmupLR"]


@PARAM_SCHEDULERS.register_module()
class PolyWarmupLR(LRSchedulerMixin, _ParamScheduler):
    """The polynomial schedule of mmcv 1, with its warm-up.

    At iteration ``t`` a group with the rate ``lr`` learns at ::

        w(t) * ((lr - eta_min) * (1 - t / end) ** power + eta_min)
        w(t) = 1 - (1 - t / warmup_iters) * (1 - warmup_ratio)  for t < warmup_iters, else 1

    mmengine's ``LinearLR`` and ``PolyLR`` in a row differ from this: they end one iteration
    earlier, and the second counts from where the first ends.

    Args:
        optimizer: The optimizer, or an optimizer wrapper.
        end: Iterations of the training; at least 1.
        power: Exponent; above 0.
        eta_min: The rate that is approached without a warm-up; at least 0.
        warmup_iters: Iterations of the warm-up; 0 for none.
        warmup_ratio: Where the warm-up begins, as a part of the rate; in (0, 1].
        begin: 0; for configs that spell it out.
        last_step: As in mmengine's schedulers.
        by_epoch: False; a value is set after every iteration.
        verbose: Whether to print every value.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> param_scheduler = [
        ...     dict(
        ...         type="dcnv4_mm.PolyWarmupLR",
        ...         end=160000,
        ...         warmup_iters=1500,
        ...         warmup_ratio=1e-6,
        ...         by_epoch=False,
        ...     )
        ... ]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        end: int,
        *,
        power: float = 1.0,
        eta_min: float = 0.0,
        warmup_iters: int = 0,
        warmup_ratio: float = 0.1,
        begin: int = 0,
        last_step: int = -1,
        by_epoch: bool = False,
        verbose: bool = False,
    ) -> None:
        if by_epoch or begin != 0:
            raise ValueError(
                f"PolyWarmupLR counts iterations from 0, got by_epoch={by_epoch} and begin={begin}"
            )
        if not (end >= 1 and power > 0 and eta_min >= 0):
            raise ValueError(
                "end must be at least 1, power above 0 and eta_min at least 0, got "
                f"{end}, {power} and {eta_min}"
            )
        if not (warmup_iters >= 0 and 0 < warmup_ratio <= 1):
            raise ValueError(
                "warmup_iters must be at least 0 and warmup_ratio in (0, 1], got "
                f"{warmup_iters} and {warmup_ratio}"
            )
        self.power = power
        self.eta_min = eta_min
        self.warmup_iters = warmup_iters
        self.warmup_ratio = warmup_ratio
        super().__init__(optimizer, begin, end, last_step, by_epoch, verbose)

    def _get_value(self) -> list[float]:
        """The rates of all groups, in closed form: nothing accumulates."""
        fraction = (1 - self.last_step / self.end) ** self.power
        warmup = 1.0
        if self.last_step < self.warmup_iters:
            warmup -= (1 - self.last_step / self.warmup_iters) * (1 - self.warmup_ratio)
        return [warmup * ((lr - self.eta_min) * fraction + self.eta_min) for lr in self.base_values]
