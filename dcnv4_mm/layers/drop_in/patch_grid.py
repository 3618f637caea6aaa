"""Rows and columns of the patches that an attention layer is called with."""

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PatchGrid"]


class _Call:
    """One call of the patch embedding."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns
        # By attention layer, how often it has been called with these patches.
        self.uses: dict[int, int] = {}


class PatchGrid:
    """Hands the shape of a patch embedding's output on to attention layers.

    Each thread has its own call, and each layer may use a call only as often as the model uses the
    layer: a shape never outlives its images. Layers that activation checkpointing runs again in
    the backward pass, which may be in another thread, find the shape by its number of patches
    among those whose graph is still there.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._in_graphs: weakref.WeakSet[_Call] = weakref.WeakSet()

    def __reduce__(self) -> tuple[type["PatchGrid"], tuple[()]]:
        # A copy of a model has calls of its own.
        return PatchGrid, ()

    def record(self, module: nn.Module, arguments: tuple[Any, ...], maps: Tensor) -> None:
        """Takes the output (N, C, H, W) of the patch embedding, as its forward hook."""
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"patch_embed: expected a module that outputs maps (N, C, H, W), got {got} from "
                f"{type(module).__name__}"
            )
        self._local.call = _Call(*maps.shape[-2:])
        self.keep_with(maps)

    def keep_with(self, output: Tensor) -> None:
        """Keeps the current shape for the backward pass as long as the graph of a tensor lives."""
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
            return
        if output.grad_fn is not None:
            metadata: Any = output.grad_fn.metadata
            metadata["dcnv4_mm.patch_grid"] = self._local.call
            self._in_graphs.add(self._local.call)

    def shape_of(self, layer: nn.Module, tokens: int, prefix_tokens: int, uses: int) -> Any:
        """Rows and columns of the patches among the tokens that a layer is called with.

        Raises:
            ValueError: The patch embedding was not called for them.
        """
        patches = tokens - prefix_tokens
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._current_graph_task_id() != -1:
            return self._shape_in_backward(patches)
        call = getattr(self._local, "call", None)
        if call is None or call.rows * call.columns != patches:
            got = "no call of it" if call is None else f"{call.rows} x {call.columns} patches"
            raise ValueError(
                f"tokens: expected {prefix_tokens} prefix tokens (prefix_tokens) and the patches "
                f"that the model's patch embedding has output, got {tokens} tokens and {got}"
            )
        if not compiling:
            used = call.uses[id(layer)] = call.uses.get(id(layer), 0) + 1
            if used > uses:
                raise ValueError(
                    f"tokens: expected {uses} calls of this attention for one call of the model's "
                    f"patch embedding, got {used}: call the model, or its patch embedding, for "
                    "every batch of images"
                )
        return call.rows, call.columns

    def _shape_in_backward(self, patches: int) -> tuple[int, int]:
        calls = [call for call in self._in_graphs if call.rows * call.columns == patches]
        shapes = {(call.rows, call.columns) for call in calls}
        if len(shapes) != 1:
            raise ValueError(
                f"tokens: expected one shape of {patches} patches among the images whose backward "
                f"pass is not done, got {sorted(shapes)}: with activation checkpointing, call "
                "backward() before images of another shape with the same number of patches, and "
                "with use_reentrant=True train the patch embedding"
            )
        return shapes.pop()
