"""Derivatives of the raw operators under every transform of torch; shared by all operators.

Reverse mode runs the raw backward, under ``torch.func.grad`` and ``vmap`` too. Everything else,
forward mode and derivatives of derivatives, differentiates the operator's reference, which consists
of torch's own operators: slower, with memory for every sampling point, and right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dcnv4_mm.ops._library import library

__all__ = ["RawOperator"]


@dataclass(frozen=True, eq=False)
class RawOperator:
    """A raw forward operator with its backward, as an operator with derivatives.

    Creating one registers the derivatives and batching rules of both with the dispatcher, for
    callers that reach a raw operator itself: compiled, traced and exported programs.

    Attributes:
        forward: Takes tensors, then other arguments. The first axis of its leading tensors and of
            its output is the batch, whose entries are independent.
        backward: Takes the gradient of the output, the arguments of ``forward``, and three flags:
            deterministic, whether the gradient of the first tensor is needed, and whether one of
            the others is. Returns one gradient for every differentiable tensor.
        reference: Computes ``forward`` by differentiable operators of torch.
        differentiable: Number of leading tensors that have a gradient.
        batched: Number of leading tensors with a batch.
        tensors: Number of tensors in all.
    """

    forward: torch._ops.OpOverload
    backward: torch._ops.OpOverload
    reference: Callable[..., Tensor]
    differentiable: int
    batched: int
    tensors: int

    def __post_init__(self) -> None:
        def forward(*arguments: Any) -> Tensor:
            return self._dispatch(arguments)

        def backward(*arguments: Any) -> tuple[Tensor, ...]:
            if _has_tangent(arguments) or torch._C._are_functorch_transforms_active():
                return self.gradients(*arguments)
            if not _needs_graph(arguments):
                return _below_autograd(self.backward, arguments)
            return _Backward.apply(self, *arguments)

        for operator, kernel, batched in (
            (self.forward, forward, self.batched),
            (self.backward, backward, self.batched + 1),
        ):
            name = operator.name().removeprefix("dcnv4_mm::")
            library.impl(name, kernel, "Autograd")
            torch.library.register_vmap(operator, _batching_rule(operator, batched), lib=library)

    def __call__(self, *arguments: Any) -> Tensor:
        """Computes the forward, with whatever derivatives the caller is after."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            if forward_ad._current_level >= 0 and not torch._C._are_functorch_transforms_active():
                # Inductor's own kernels drop tangents without a word. Without fullgraph, torch
                # answers this error by running the function uncompiled, which is right.
                raise NotImplementedError(
                    "a compiled function has no derivative in forward mode: compile what calls "
                    "torch.func.jvp instead"
                )
            # One node of the graph; its derivatives are those registered with the dispatcher.
            return self.forward(*arguments)
        if forward_ad._current_level >= 0:
            return self.reference(*arguments)
        return self.eager(*arguments)

    def eager(self, *arguments: Any) -> Tensor:
        """The same outside of compiled and traced code and of forward mode, in less time."""
        if torch._C._are_functorch_transforms_active():
            return self._apply(_TransformedForward, arguments)
        if torch.is_grad_enabled():
            for tensor in arguments[: self.tensors]:
                if tensor.requires_grad:
                    return self._apply(_Forward, arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.forward(*arguments)

    def _dispatch(self, arguments: tuple[Any, ...]) -> Tensor:
        if _has_tangent(arguments) or torch._C._are_functorch_transforms_active():
            return self.reference(*arguments)
        if _needs_graph(arguments):
            return self._apply(_Forward, arguments)
        return _below_autograd(self.forward, arguments)

    def _apply(self, function: type["_Forward"], arguments: tuple[Any, ...]) -> Tensor:
        # One argument for all that is no tensor: autograd takes time for each.
        return function.apply(self, arguments[self.tensors :], *arguments[: self.tensors])

    def gradients(self, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """Computes what ``backward`` does, by differentiable operators of torch."""
        *arguments_of_forward, _, need_first, need_others = arguments
        count = self.differentiable
        rest = arguments_of_forward[count:]
        gradients = torch.func.vjp(
            lambda *tensors: self.reference(*tensors, *rest), *arguments_of_forward[:count]
        )[1](grad_output)
        needs = (need_first, *[need_others] * (count - 1))
        return tuple(
            gradient if need else gradient.new_empty(0)
            for gradient, need in zip(gradients, needs, strict=True)
        )


class _Forward(torch.autograd.Function):
    """Reverse mode outside of transforms."""

    # Not setup_context: torch then inspects the signature of forward in every call.
    @staticmethod
    def forward(ctx: Any, operator: RawOperator, options: tuple[Any, ...], *tensors: Any) -> Tensor:
        ctx.operator, ctx.options = operator, options
        ctx.save_for_backward(*tensors)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.forward(*tensors, *options)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        operator: RawOperator = ctx.operator
        _, _, first, *others = ctx.needs_input_grad
        count = operator.differentiable - 1
        if any(others[count:]):
            raise NotImplementedError(
                f"{operator.forward} has gradients of its first {count + 1} tensors "
                "only: detach() the others"
            )
        arguments = (
            grad_output,
            *ctx.saved_tensors,
            *ctx.options,
            torch.are_deterministic_algorithms_enabled(),
            first,
            any(others),
        )
        gradients: Sequence[Tensor | None]
        if forward_ad._current_level >= 0:
            gradients = operator.gradients(*arguments)
        elif torch._C._are_functorch_transforms_active():
            gradients = _Backward.apply(operator, *arguments)
        elif torch.is_grad_enabled():
            # By the dispatcher: batched gradients (is_grads_batched) would lose their graph in a
            # Function, which does not know torch's older vmap.
            gradients = operator.backward(*arguments)
        else:
            gradients = _below_autograd(operator.backward, arguments)
        needs = (first, *others[:count])
        if not all(needs):
            gradients = [g if need else None for g, need in zip(gradients, needs, strict=True)]
        return None, None, *gradients, *[None] * (len(others) - count)


class _TransformedForward(_Forward):
    """Reverse mode within transforms of ``torch.func``."""

    @staticmethod
    def forward(operator: RawOperator, options: tuple[Any, ...], *tensors: Any) -> Tensor:  # type: ignore[override]
        return _below_autograd(operator.forward, (*tensors, *options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, ctx.options, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        operator: RawOperator,
        options: tuple[Any, ...],
        *tensors: Any,
    ) -> Any:
        rule = _batching_rule(operator, operator.batched)
        return rule(info, in_dims[2:], *tensors, *options)


class _Backward(torch.autograd.Function):
    """The raw backward where its result may be differentiated again."""

    @staticmethod
    def forward(operator: RawOperator, *arguments: Any) -> tuple[Tensor, ...]:
        return _below_autograd(operator.backward, arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        operator, grad_output, *arguments = inputs
        ctx.operator = operator
        ctx.save_for_backward(grad_output, *arguments[: operator.tensors])
        ctx.options = arguments[operator.tensors :]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        operator: RawOperator = ctx.operator
        count = 1 + operator.differentiable
        rest = ctx.saved_tensors[count:]
        gradients = torch.func.vjp(
            lambda *tensors: operator.gradients(*tensors, *rest, *ctx.options),
            *ctx.saved_tensors[:count],
        )[1](tuple(grads))
        return None, *gradients, *[None] * (len(ctx.needs_input_grad) - 1 - count)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: RawOperator, *arguments: Any) -> Any:
        def call(*folded: Any) -> tuple[Tensor, ...]:
            return _Backward.apply(operator, *folded)

        return _batching_rule(call, operator.batched + 1)(info, in_dims[1:], *arguments)


def _below_autograd(operator: torch._ops.OpOverload, arguments: Sequence[Any]) -> Any:
    """Calls a raw operator without the detour over its derivatives."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _needs_graph(arguments: Sequence[Any]) -> bool:
    if torch.is_grad_enabled():
        # A loop, as a generator takes longer than all the rest of a call without a graph.
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return False


def _has_tangent(arguments: Sequence[Any]) -> bool:
    # A compiled graph enters the level of forward mode unknown to torch.autograd.forward_ad.
    return any(
        isinstance(argument, Tensor) and torch._VF._unpack_dual(argument, level=0)[1] is not None
        for argument in arguments
    )


def _batching_rule(call: Callable[..., Any], batched: int) -> Callable[..., Any]:
    """The rule for ``vmap``: its axis becomes part of the batch that ``call`` knows."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        size = info.batch_size
        moved = [
            tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(arguments[:batched], in_dims[:batched], strict=True)
        ]
        batch = moved[0].shape[1]

        def unfold(tensor: Tensor) -> tuple[Tensor, int | None]:
            # A gradient that is not needed is an empty tensor, without a batch.
            return (tensor, None) if tensor.dim() == 1 else (tensor.unflatten(0, (size, batch)), 0)

        folded = (tensor.flatten(0, 1) for tensor in moved)
        outputs = call(*folded, *arguments[batched:])
        if isinstance(outputs, Tensor):
            return unfold(outputs)
        pairs = [unfold(output) for output in outputs]
        return tuple(output for output, _ in pairs), tuple(dim for _, dim in pairs)

    return rule
