"""What else could do DCNv4's work on a GPU, or stand in its place: the operators side by side.

A peer that is not installed, or that cannot do a case, is a printed line.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from cases import Case
from dcnv4 import grid_sample_dcnv4
from torch import Tensor

from dcnv4_mm.ops.dcnv4.layout import unpack
from dcnv4_mm.ops.functional import dcnv4

Operator = Callable[..., Tensor]


class Contender(NamedTuple):
    """An operator: ``function(*inputs)``, and the leaves of its gradient."""

    function: Operator
    inputs: tuple[Tensor, ...]
    # Whether it computes what DCNv4 computes, so that its output can be checked.
    same: bool


def _ours(case: Case, value: Tensor, offset_mask: Tensor) -> Contender:
    return Contender(lambda v, o: dcnv4(v, o, groups=case.groups), (value, offset_mask), True)


def _ours_fast(case: Case, value: Tensor, offset_mask: Tensor) -> Contender:
    if value.dtype != torch.float16:
        raise NotImplementedError("differs from the default in float16 only")

    def function(v: Tensor, o: Tensor) -> Tensor:
        return dcnv4(v, o, groups=case.groups, precision="fast")

    return Contender(function, (value, offset_mask), True)


def _original(case: Case, value: Tensor, offset_mask: Tensor) -> Contender:
    from DCNv4.functions import DCNv4Function  # the released package, from its sdist

    width = case.channels
    per_step = min(case.batch, 256)

    def function(v: Tensor, o: Tensor) -> Tensor:
        settings = (3, 3, 1, 1, 1, 1, 1, 1, case.groups, width, 1.0, per_step, 0)
        return DCNv4Function.apply(v, o, *settings)

    return Contender(function, (value.contiguous(), offset_mask.contiguous()), True)


def _grid_sample(case: Case, value: Tensor, offset_mask: Tensor) -> Contender:
    if value.dtype.itemsize < 4:
        raise NotImplementedError("its relative coordinates are wrong by pixels in 16 bits")
    return Contender(
        lambda v, o: grid_sample_dcnv4(v, o, groups=case.groups), (value, offset_mask), True
    )


def _grid_sample_compiled(case: Case, value: Tensor, offset_mask: Tensor) -> Contender:
    if value.device.type != "cuda":
        raise NotImplementedError("is measured on GPUs only")
    eager = _grid_sample(case, value, offset_mask)
    return eager._replace(function=torch.compile(eager.function, dynamic=False))


def _deform_conv2d(case: Case, value: Tensor, offset_mask: Tensor) -> Contender:
    from torchvision.ops import deform_conv2d

    offsets, masks = unpack(offset_mask, case.groups, 9)
    # [N, 2 G K, H, W] and [N, G K, H, W]; depthwise, as DCNv4 mixes no channels.
    offsets = offsets.flatten(3).permute(0, 3, 1, 2).contiguous()
    masks = masks.flatten(3).permute(0, 3, 1, 2).contiguous()
    image = value.permute(0, 3, 1, 2).contiguous()
    weight = torch.ones(image.shape[1], 1, 3, 3, dtype=value.dtype, device=value.device)

    def function(i: Tensor, o: Tensor, m: Tensor) -> Tensor:
        return deform_conv2d(i, o, weight, padding=1, mask=m)

    return Contender(function, (image, offsets, masks), False)


def _convolution(case: Case, value: Tensor, depthwise: bool) -> Contender:
    image = value.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    channels = image.shape[1]
    groups = channels if depthwise else 1
    weight = torch.ones(channels, channels // groups, 3, 3, dtype=value.dtype, device=value.device)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Contender(lambda i: F.conv2d(i, weight, padding=1, groups=groups), (image,), False)


def _attention(case: Case, value: Tensor, offset_mask: Tensor) -> Contender:
    """Attention over all pixels of an image, in heads of 32 channels."""
    tokens = value.flatten(1, 2)
    if tokens.shape[-1] % 32:
        raise NotImplementedError("needs a multiple of 32 channels")
    heads = tokens.unflatten(-1, (-1, 32)).transpose(1, 2).contiguous()
    copies = tuple(heads.clone() for _ in range(3))
    return Contender(F.scaled_dot_product_attention, copies, False)


OURS = "dcnv4"
ORIGINAL = "original DCNv4"
PEERS: dict[str, Callable[[Case, Tensor, Tensor], Contender]] = {
    OURS: _ours,
    f"{OURS}, fast": _ours_fast,
    ORIGINAL: _original,
    "grid_sample": _grid_sample,
    "grid_sample, compiled": _grid_sample_compiled,
    "torchvision deform_conv2d": _deform_conv2d,
    "convolution 3x3": lambda case, value, _: _convolution(case, value, depthwise=False),
    "depthwise convolution 3x3": lambda case, value, _: _convolution(case, value, depthwise=True),
    "scaled_dot_product_attention": _attention,
}
