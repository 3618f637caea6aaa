"""Common base of the drop-ins: initial values, and replacement of modules."""

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.utils import parametrize

from dcnv4_mm.layers.dcnv4 import DCNv4

__all__ = ["MeanDCNv4", "module_names", "replace_modules"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class MeanDCNv4(DCNv4):
    """A DCNv4 that starts as the mean of its window.

    A new DCNv4 outputs zeros, of which a norm behind it would make a gradient a thousand times as
    large as usual.
    """

    def reset_parameters(self) -> None:
        """Initializes as the parent, with masks of one divided by the number of points."""
        super().reset_parameters()
        points = self.kernel_size[0] * self.kernel_size[1] - self.remove_center
        masks = self.offset_mask.bias.detach()[: 3 * self.groups * points]
        masks.view(self.groups, 3 * points)[:, 2 * points :] = 1 / points

    def init_weights(self) -> None:
        """By this name mmengine calls it, after a host's own rules for linear layers."""
        self.reset_parameters()


def module_names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All names of every module; a shared one has several."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def replace_modules(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> int:
    """Replaces modules under all of their names.

    Args:
        model: Changed in place.
        made: Old module -> new one, which takes its mode and ``requires_grad``.

    Returns:
        Number of modules replaced.

    Raises:
        ValueError: There are none, one is the model itself, or one has what would be lost: hooks,
            parametrizations such as ``spectral_norm``, a ``forward`` set on the object, a parameter
            in common with another module, or a reference to it in an attribute of another module.
            The model is then unchanged.
    """
    if not made or model in made:
        raise ValueError(
            f"no module inside of this {type(model).__name__} was selected: pass another `select`"
        )
    names = module_names(model)
    _check_nothing_is_lost(names, made)
    for old, new in made.items():
        _take_over(old, new)
        for parent, own in _parents(model, names[old]):
            setattr(parent, own, new)
    return len(made)


def _check_nothing_is_lost(
    names: Mapping[nn.Module, list[str]], made: Mapping[nn.Module, nn.Module]
) -> None:
    owners: dict[nn.Parameter, list[str]] = {}
    for module, (name, *_) in names.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
        for attribute, held in vars(module).items():
            for old in _modules_in(held) if attribute != "_modules" else ():
                if old in made:
                    raise ValueError(
                        f"{names[old][0]!r} is also in the attribute {attribute!r} of {name!r}, "
                        "which would keep the old module: leave it out"
                    )
    for old in made:
        name = names[old][0]
        for module in old.modules():
            if any(getattr(module, hooks) for hooks in _HOOKS):
                raise ValueError(f"{name!r} has hooks, which it would lose: remove them first")
            if "forward" in vars(module):
                raise ValueError(f"{name!r} has a forward of its own, which it would lose")
            if parametrize.is_parametrized(module):
                raise ValueError(
                    f"{name!r} has parametrizations, which it would lose: remove them first, by "
                    "torch.nn.utils.parametrize.remove_parametrizations"
                )
        for parameter in old.parameters():
            if len(owners[parameter]) > 1:
                raise ValueError(
                    f"{owners[parameter]} have a parameter in common, which {name!r} would lose: "
                    "share the module instead, or leave it out"
                )


def _modules_in(held: object) -> list[nn.Module]:
    """The modules in what an attribute holds, which no call of ``named_modules`` finds."""
    if isinstance(held, dict):
        held = list(held.values())
    return [
        one
        for one in (held if isinstance(held, (list, tuple)) else [held])
        if isinstance(one, nn.Module)
    ]


def _take_over(old: nn.Module, new: nn.Module) -> None:
    first = next(old.parameters())
    new.train(old.training)
    for parameter in new.parameters():
        parameter.requires_grad_(first.requires_grad)


def _parents(model: nn.Module, names: list[str]) -> Iterator[tuple[nn.Module, str]]:
    for name in names:
        parent, _, own = name.rpartition(".")
        yield model.get_submodule(parent), own
