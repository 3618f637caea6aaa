"""The polynomial learning rate with warm-up: the formula, all groups, going on after a stop."""

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from dcnv4_mm.optim import PolyWarmupLR


def make_optimizer(*rates):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    return torch.optim.AdamW(groups)


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_a_schedule_by_hand():
    """Four iterations, of which the first two are warmed up from a half."""
    optimizer = make_optimizer(8.0, 4.0)
    schedule = PolyWarmupLR(optimizer, end=4, warmup_iters=2, warmup_ratio=0.5)
    seen = [rates_of(optimizer)]
    for _ in range(3):
        schedule.step()
        seen.append(rates_of(optimizer))
    # 8 * (1, 3/4, 2/4, 1/4), times (1/2, 3/4, 1, 1).
    assert seen == [[4.0, 2.0], [4.5, 2.25], [4.0, 2.0], [2.0, 1.0]]


def test_power_and_lowest_rate():
    optimizer = make_optimizer(10.0)
    schedule = PolyWarmupLR(optimizer, end=2, power=2.0, eta_min=2.0)
    assert rates_of(optimizer) == [10.0]
    schedule.step()
    assert rates_of(optimizer) == [8.0 * 0.25 + 2.0]


def test_it_stays_behind_the_end():
    optimizer = make_optimizer(1.0)
    schedule = PolyWarmupLR(optimizer, end=4)
    for _ in range(9):
        schedule.step()
    assert rates_of(optimizer) == [0.25]


def test_it_goes_on_after_a_stop():
    optimizer, other = make_optimizer(3.0), make_optimizer(3.0)
    first, second = (PolyWarmupLR(o, end=50, warmup_iters=9) for o in (optimizer, other))
    for _ in range(20):
        first.step()
    other.load_state_dict(optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    first.step(), second.step()
    assert rates_of(optimizer) == rates_of(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end": 0}, "end must be at least 1"),
        ({"end": 5, "power": 0}, "power above 0"),
        ({"end": 5, "eta_min": -1}, "eta_min at least 0"),
        ({"end": 5, "warmup_iters": -1}, "warmup_iters must be at least 0"),
        ({"end": 5, "warmup_ratio": 0}, "warmup_ratio in"),
        ({"end": 5, "by_epoch": True}, "counts iterations from 0, got by_epoch=True"),
        ({"end": 5, "begin": 3}, "begin=3"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PolyWarmupLR(make_optimizer(1.0), **arguments)


def test_it_is_registered():
    assert PARAM_SCHEDULERS.get("dcnv4_mm.PolyWarmupLR") is PolyWarmupLR
