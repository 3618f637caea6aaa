"""Common code of the comparisons of operators, on a CPU and on a GPU."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from compare import Builders, Implementation, Settings, compare
from measure import Call, Table, buffer_sets, on_capture_stream, relative_error
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator with its inputs: ``function(*inputs)``.

    Attributes:
        function: What is timed.
        inputs: The leaves of its gradient.
        same: Whether it computes what ours computes, so that its output can be checked.
        dtype: Its own, where it is not that of the comparison.
    """

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    same: bool = True
    dtype: str | None = None


def forward_calls(operator: Operator, sets: int) -> list[Call]:
    """The forward on several copies of the inputs."""

    def call(inputs: tuple[Tensor, ...]) -> None:
        with torch.inference_mode():
            operator.function(*inputs)

    return [partial(call, tuple(t.clone() for t in operator.inputs)) for _ in range(sets)]


def backward_calls(operator: Operator, sets: int) -> list[Call]:
    """The backward alone, of forwards that were computed before."""

    def prepare() -> Call:
        with on_capture_stream():
            leaves = [t.clone().requires_grad_() for t in operator.inputs]
            output = operator.function(*leaves)
            gradient = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)

    return [prepare() for _ in range(sets)]


def training_calls(operator: Operator, sets: int) -> list[Call]:
    """Forward and backward."""

    def prepare() -> Call:
        leaves = [t.clone().requires_grad_() for t in operator.inputs]
        with torch.no_grad():
            gradient = torch.randn_like(operator.function(*leaves))
        return lambda: torch.autograd.grad(operator.function(*leaves), leaves, gradient)

    return [prepare() for _ in range(sets)]


CALLS = {
    "forward": forward_calls,
    "backward": backward_calls,
    "forward+backward": training_calls,
}


def compare_operators(
    table: Table,
    settings: Settings,
    *,
    cases: Sequence[Any],
    make_inputs: Callable[..., tuple[Tensor, ...]],
    expected: Callable[..., Tensor],
    operators: dict[str, Callable[..., Operator]],
    targets: Callable[[Any, str], dict[tuple[str, int], str]] = lambda case, measured: {},
) -> None:
    """Measures implementations of an operator.

    On a GPU the forward and the backward alone, in CUDA graphs; on a CPU the forward, and both
    together.

    Args:
        table: Where the rows go.
        settings: See :class:`compare.Settings`.
        cases: What is measured; ``case.bytes(itemsize, backward)`` is the size of its tensors.
        make_inputs: ``make_inputs(case, dtype, device)``.
        expected: ``expected(case, *inputs)``: the output, computed in float64.
        operators: ``operator(case, *inputs)`` by name, ours first.
        targets: What the ratios in float32 shall be, by case and "forward" or so.
    """
    second = "backward" if settings.on_gpu else "forward+backward"
    for case, dtype in itertools.product(cases, settings.dtypes):
        inputs = make_inputs(case, getattr(torch, dtype), settings.device)
        exact = cache(partial(expected, case, *inputs))
        for measured in ("forward", second):

            def build(
                make: Callable[..., Operator],
                case: Any = case,
                inputs: tuple[Tensor, ...] = inputs,
                measured: str = measured,
                exact: Callable[[], Tensor] = exact,
            ) -> Implementation:
                operator = make(case, *inputs)
                size = case.bytes(inputs[0].element_size(), measured == "backward")
                figures = {}
                if operator.same:
                    with torch.inference_mode():
                        output = operator.function(*operator.inputs)
                    figures["relative_error"] = relative_error(output, exact())
                return Implementation(
                    calls=CALLS[measured](operator, buffer_sets(size, settings.device)),
                    bytes=None if measured == "forward+backward" else size,
                    dtype=operator.dtype,
                    figures=figures,
                )

            builders: Builders = {name: partial(build, make) for name, make in operators.items()}
            compare(
                table,
                settings,
                case=case,
                measured=measured,
                dtype=dtype,
                builders=builders,
                in_graphs=True,
                targets=targets(case, measured) if dtype == "float32" else None,
            )


def to_float32(*tensors: Tensor) -> tuple[tuple[Tensor, ...], str | None]:
    """16-bit tensors in float32, and that as the dtype of an :class:`Operator`.

    For implementations whose relative coordinates are wrong by pixels in 16 bits; torch 2.13's
    ``grid_sample`` then writes outside its memory.
    """
    if tensors[0].dtype.itemsize >= 4:
        return tensors, None
    return tuple(tensor.float() for tensor in tensors), "float32"


def pixel_centers(height: int, width: int) -> Tensor:
    """(H * W, 2) locations (x, y) in units of the image."""
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
