"""Hugging Face transformers' deformable attention on this package's operator.

Every detector of transformers has its own copy of the attention, in one of three forms: a module
without parameters inside the attention layer, a function that is an attribute of the layer, or a
function of the layer's Python module. They are recognized by their arguments, so that transformers
is not imported, and tried on small tensors before they are replaced.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from dcnv4_mm.layers._torchscript import refuse_script
from dcnv4_mm.ops.functional import ms_deform_attn

__all__ = ["find_replacements", "is_swapped_layer"]

# The second holds the code of models on the Hub (trust_remote_code).
_PACKAGES = ("transformers", "transformers_modules")
# Arguments of the three forms.
_MODULE = (
    "value",
    "value_spatial_shapes",
    "value_spatial_shapes_list",
    "level_start_index",
    "sampling_locations",
    "attention_weights",
    "im2col_step",
)
_FUNCTION = ("value", "value_spatial_shapes", "sampling_locations", "attention_weights")
_POINTS_FUNCTION = (*_FUNCTION, "num_points_list", "method")


class Attention(nn.Module):
    """The class that swapping gives to attention modules without parameters."""

    __prepare_scriptable__ = refuse_script

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Attends; the level sizes are read from the list, which is on the CPU."""
        return ms_deform_attn(
            value, value_spatial_shapes_list, sampling_locations, attention_weights
        )


def attend(
    value: Tensor,
    value_spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Replaces ``multi_scale_deformable_attention`` of Mask2Former and OneFormer."""
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def attend_points(
    value: Tensor,
    value_spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    """Replaces ``multi_scale_deformable_attention_v2`` of RT-DETRv2, D-FINE and DEIMv2.

    Args:
        value: (N, S, G, D).
        value_spatial_shapes: (H, W) of every level.
        sampling_locations: (N, Q, G, sum of points, 2).
        attention_weights: (N, Q, G, sum of points).
        num_points_list: Number of points of every level.
        method: ``"default"``, bilinear sampling.
    """
    if method != "default":
        raise ValueError(f"method: expected 'default', which is bilinear, got {method!r}")
    if len(set(num_points_list)) == 1:
        points = (len(num_points_list), num_points_list[0])
        locations = sampling_locations.unflatten(-2, points)
        weights = attention_weights.unflatten(-1, points)
        return ms_deform_attn(value, value_spatial_shapes, locations, weights)
    # The operator has as many points on every level of a call: a call for each.
    counts = list(num_points_list)
    levels = zip(
        value_spatial_shapes,
        value.split([height * width for height, width in value_spatial_shapes], 1),
        sampling_locations.split(counts, -2),
        attention_weights.split(counts, -1),
        strict=True,
    )
    outputs = [
        ms_deform_attn(pixels, [shape], locations.unsqueeze(3), weights.unsqueeze(3))
        for shape, pixels, locations, weights in levels
    ]
    return torch.stack(outputs).sum(0)


_FUNCTIONS: dict[tuple[str, ...], Callable[..., Tensor]] = {
    _FUNCTION: attend,
    _POINTS_FUNCTION: attend_points,
}


class _WithOurFunction(nn.Module):
    """Base of layers whose ``forward`` is the host's with another global function."""

    __prepare_scriptable__ = refuse_script

    def __reduce_ex__(self, protocol: Any) -> Any:
        _, _, *state = super().__reduce_ex__(protocol)
        return _empty, (type(self).__mro__[2],), *state


def is_swapped_layer(module: nn.Module) -> bool:
    """Whether a module, without its children, is one that swapping has changed."""
    return isinstance(module, (Attention, _WithOurFunction)) or any(
        value is function for value in vars(module).values() for function in _FUNCTIONS.values()
    )


def find_replacements(model: nn.Module) -> list[Callable[[], None]]:
    """Finds the attention layers of transformers in a model.

    Returns:
        A function for each that swaps it; nothing is changed before.

    Raises:
        ValueError: A layer of transformers has deformable attention that this package does not
            compute, or an attention whose ``forward`` was replaced.
    """
    replacements = []
    for layer in filter(_is_attention_layer, model.modules()):
        if any(map(is_swapped_layer, (layer, *layer.children()))):
            continue
        found = next(_replacements(layer), None)
        if found is None:
            raise ValueError(
                f"{type(layer).__name__}: expected an attention with the arguments "
                f"{', '.join(_FUNCTION)} and bilinear sampling, found none: this version of "
                "transformers is not supported, or this model; see docs/transformers.md"
            )
        replacements.append(found)
    return replacements


def _is_attention_layer(module: nn.Module) -> bool:
    # Linear layers, or what an adapter or quantization has put in their place.
    names = ("sampling_offsets", "attention_weights")
    return all(isinstance(getattr(module, name, None), nn.Module) for name in names) and any(
        cls.__module__.split(".")[0] in _PACKAGES for cls in type(module).__mro__
    )


def _replacements(layer: nn.Module) -> Iterator[Callable[[], None]]:
    """The ways in which a layer can be changed: one, or none."""
    for name, child in layer.named_children():
        if _arguments(type(child).forward)[1:] == _MODULE:
            _check_forward(child, f"{type(layer).__name__}.{name}")
            _check_results(child.forward, Attention().forward, _MODULE)
            yield lambda child=child: setattr(child, "__class__", Attention)  # type: ignore[misc]
    for name, value in vars(layer).items():
        if isinstance(value, FunctionType) and (ours := _ours(value)):
            _check_method(layer)
            yield lambda name=name, ours=ours: setattr(layer, name, ours)  # type: ignore[misc]
    if _global_function(type(layer)):
        _check_method(layer)
        _check_forward(layer, type(layer).__name__)
        yield lambda: setattr(layer, "__class__", _subclass(type(layer)))


def _check_forward(module: nn.Module, name: str) -> None:
    if "forward" in vars(module):
        raise ValueError(
            f"{name}: its forward was replaced, by kernels or accelerate: call "
            "swap_deformable_attention before them"
        )


def _check_method(layer: nn.Module) -> None:
    """Refuses the mode of RT-DETRv2, D-FINE and DEIMv2 that rounds locations to pixels."""
    for name in ("method", "decoder_method"):
        if getattr(layer, name, "default") != "default":
            raise ValueError(
                f"{type(layer).__name__}: expected {name} 'default', which is bilinear, got "
                f"{getattr(layer, name)!r}"
            )


def _ours(function: FunctionType) -> Callable[..., Tensor] | None:
    """Our function for one of the host, or ``None`` if it is no attention."""
    arguments = _arguments(function)
    if arguments not in _FUNCTIONS:
        return None
    _check_results(function, _FUNCTIONS[arguments], arguments)
    return _FUNCTIONS[arguments]


@cache
def _global_function(layer: type[nn.Module]) -> tuple[str, Callable[..., Tensor]] | None:
    """Name of the attention function that a class calls, and ours for it."""
    forward = layer.forward
    if isinstance(forward, FunctionType):
        for name in forward.__code__.co_names:
            function = forward.__globals__.get(name)
            if isinstance(function, FunctionType) and (ours := _ours(function)):
                return name, ours
    return None


@cache
def _subclass(layer: type[nn.Module]) -> type[nn.Module]:
    """The class with ours as the global function of its ``forward``, which stays the host's."""
    found = _global_function(layer)
    assert found is not None
    theirs: Any = layer.forward
    forward = FunctionType(
        theirs.__code__,
        {**theirs.__globals__, found[0]: found[1]},
        theirs.__name__,
        theirs.__defaults__,
        theirs.__closure__,
    )
    forward.__kwdefaults__ = theirs.__kwdefaults__
    names = {"forward": forward, "__module__": layer.__module__, "__doc__": layer.__doc__}
    return type(layer.__name__, (_WithOurFunction, layer), names)


def _empty(layer: type[nn.Module]) -> nn.Module:
    """An object for pickle to fill."""
    subclass = _subclass(layer)
    return subclass.__new__(subclass)


def _arguments(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _check_results(theirs: Any, ours: Any, arguments: tuple[str, ...]) -> None:
    """Refuses an attention that computes something else than ours.

    Raises:
        ValueError: The results differ.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32)

    shapes, points = [(3, 4), (2, 3)], (4,) if "num_points_list" in arguments else (2, 2)
    known = {
        "value": random(1, 18, 2, 3),
        "value_spatial_shapes": shapes,
        "value_spatial_shapes_list": shapes,
        "level_start_index": None,
        # Some are outside of the image.
        "sampling_locations": random(1, 5, 2, *points, 2) * 1.4 - 0.2,
        "attention_weights": random(1, 5, 2, *points),
        "im2col_step": 64,
        "num_points_list": [1, 3],
        "method": "default",
    }
    given = [known[name] for name in arguments]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected, output = theirs(*given), ours(*given)
    if output.shape != expected.shape or not torch.allclose(output, expected, atol=1e-5):
        name = f"{theirs.__module__}.{theirs.__qualname__}"
        raise ValueError(f"{name} computes something else than ms_deform_attn: it is not swapped")
