"""A debugging hook that stops training at a non-finite loss and reports where it arose."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from dcnv4_mm.registry import HOOKS

__all__ = ["NonFiniteHook"]


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stops training when a loss is NaN or infinite, before it reaches the weights.

    A file ``non_finite_iter_N_rank_R.json`` in the log folder names the iteration, the losses, the
    images, and the first module with a non-finite output. The hook checks the output of every
    module and synchronizes with the device once per step, so it is meant for debugging.

    Raises:
        FloatingPointError: In training, when a loss is not finite; the message has the same content
            as the file.

    Note:
        A module may return infinite values on purpose, for example a mask. Operations outside
        modules, as in a head's loss, are attributed to the enclosing module.

    Example:
        >>> custom_hooks = [dict(type="dcnv4_mm.NonFiniteHook")]
    """

    def before_train(self, runner: Runner) -> None:
        """Registers forward hooks on all modules."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # Modules in the order of execution, and whether their output was finite.
        self._seen: list[tuple[str, Tensor]] = []

        def check(module: nn.Module, arguments: Any, losses: Any) -> None:
            if module.training:
                self._check(runner, module.parse_losses(losses))

        self._handles = [
            module.register_forward_hook(partial(self._note, name or type(model).__name__))
            for name, module in model.named_modules()
        ]
        self._handles.append(model.register_forward_hook(check))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Clears the outputs of the previous step."""
        self._seen.clear()
        self._batch = data_batch

    def after_train(self, runner: Runner) -> None:
        """Removes the forward hooks."""
        for handle in self._handles:
            handle.remove()

    def _note(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if module.training:
            # Without synchronizing with the device.
            finite = [tensor.detach().isfinite().all() for tensor in _tensors(output)]
            self._seen += [(name, flag) for flag in finite]

    def _check(self, runner: Runner, parsed: tuple[Tensor, dict[str, Tensor]]) -> None:
        loss, values = parsed
        if loss.isfinite():
            return
        first = next((name for name, finite in self._seen if not finite), "none")
        report = {
            "iteration": runner.iter + 1,
            "epoch": runner.epoch + 1,
            "rank": get_rank(),
            "first_module": first,
            "losses": {name: str(value.item()) for name, value in values.items()},
            "images": _images(self._batch),
        }
        path = Path(runner.log_dir, f"non_finite_iter_{runner.iter + 1}_rank_{get_rank()}.json")
        path.write_text(json.dumps(report, indent=1))
        raise FloatingPointError(
            f"the loss is {loss.item()} in iteration {runner.iter + 1}; first module with a "
            f"non-finite output: {first}; images: {', '.join(report['images']) or 'unnamed'}; "
            f"written to {path}. The weights are those before this step"
        )


def _tensors(output: Any) -> Iterator[Tensor]:
    """All floating-point tensors in nested containers."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)


def _images(batch: Any) -> list[str]:
    """Paths or ids of the images of a batch."""
    if isinstance(batch, (list, tuple)):
        return [name for part in batch for name in _images(part)]
    if isinstance(batch, dict):
        return _images(batch.get("data_samples"))
    meta = getattr(batch, "metainfo", {})
    return [str(meta[key]) for key in ("img_path", "img_id", "sample_idx") if key in meta][:1]
