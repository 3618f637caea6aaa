"""Layers as single nodes of the graphs that torch.fx traces."""

import functools
from collections.abc import Callable
from typing import Any

from torch import fx, nn

__all__ = ["fx_leaf"]


def fx_leaf(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a layer's ``forward``: torch.fx records the layer, as it does those of torch.nn.

    Its own code depends on the sizes of tensors, which are unknown while torch.fx traces. A layer
    that is traced itself, not as a part of a model, cannot be a node of its own graph.
    """

    @functools.wraps(forward)
    def recorded(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, fx.Proxy):
                tracer = argument.tracer
                path = tracer.path_of_module(self)  # type: ignore[attr-defined]
                if path:
                    return tracer.create_proxy("call_module", path, args, kwargs)
        return forward(self, *args, **kwargs)

    return recorded
