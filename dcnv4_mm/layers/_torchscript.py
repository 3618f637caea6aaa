"""TorchScript, which torch has deprecated and the operators do not support."""

from typing import NoReturn

from torch import nn

__all__ = ["refuse_script"]


def refuse_script(module: nn.Module) -> NoReturn:
    """The ``__prepare_scriptable__`` of a layer: ``torch.jit.script`` of any model calls it.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(
        f"{type(module).__name__}: torch.jit.script is not supported: use torch.export, "
        "torch.compile or torch.jit.trace; see docs/export.md"
    )
