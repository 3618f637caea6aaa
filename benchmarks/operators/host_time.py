"""CPU time of calls of DCNv4 on a few elements."""

import time
from collections.abc import Callable
from functools import partial

import torch
from compare import Implementation, Settings, compare
from measure import Call, Table
from operators.cases import Case, make_inputs
from operators.dcnv4 import KERNEL, OURS
from torch import Tensor

from dcnv4_mm.ops.functional import dcnv4


class _Around(torch.autograd.Function):
    """Does what every autograd.Function of two tensors must do around two calls."""

    @staticmethod
    def forward(ctx, forward: Call, backward: Call, value: Tensor, offset_mask: Tensor) -> Tensor:
        ctx.save_for_backward(value, offset_mask)
        ctx.backward = backward
        return forward(value, offset_mask)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.backward(grad, *ctx.saved_tensors)


def run_host_time(table: Table, settings: Settings) -> None:
    """CPU time of calls on a few elements, against what no Python around the kernels can avoid."""
    case = Case(height=2, width=2, groups=1, channels=4)
    *inputs, grad = make_inputs(case, torch.float32)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    options = (*KERNEL, case.groups, 1.0, False, False)

    def forward(*tensors: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.dcnv4_mm.dcnv4_forward.default(*tensors, *options)

    def backward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.dcnv4_mm.dcnv4_backward.default(*tensors, *options, False, True, True)

    def empty_backward(grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, tensors))

    def train(function: Callable[..., Tensor]) -> None:
        torch.autograd.grad(function(*leaves), leaves, grad)

    function = partial(dcnv4, groups=case.groups)
    empty = partial(_Around.apply, lambda value, _: torch.empty_like(value), empty_backward)
    calls: dict[str, dict[str, Call]] = {
        "forward": {
            OURS: partial(function, *inputs),
            "raw operator": partial(forward, *inputs),
            "torch.empty_like": partial(torch.empty_like, inputs[0]),
        },
        "forward+backward": {
            OURS: partial(train, function),
            "raw operators in an autograd.Function": partial(
                train, partial(_Around.apply, forward, backward)
            ),
            "empty autograd.Function": partial(train, empty),
        },
    }
    for measured, some in calls.items():
        with torch.set_grad_enabled(measured != "forward"):
            compare(
                table,
                settings,
                case=case,
                measured=measured,
                dtype="float32",
                builders={
                    name: partial(Implementation, calls=[call]) for name, call in some.items()
                },
                clock=time.process_time,
            )
