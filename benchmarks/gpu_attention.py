"""Deformable attention on a GPU: the encoder and the decoder of DINO, and what else could serve."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from cases import pixel_centers
from gpu_peers import Contender
from torch import Tensor

from dcnv4_mm.ops.flash_deform_attn.layout import pack
from dcnv4_mm.ops.flash_deform_attn.reference import ms_deform_attn_forward_reference
from dcnv4_mm.ops.functional import flash_deform_attn, ms_deform_attn

HEADS, CHANNELS = 8, 32
# The pyramid of an image of 800 x 1333 pixels.
LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
OFFSET_DEVIATION = 2.0


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """Attention over an image's pyramid; without ``queries`` they are its pixels."""

    batch: int
    points: int
    levels: tuple[tuple[int, int], ...] = LEVELS
    queries: int | None = None

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    def __str__(self) -> str:
        what = "encoder" if self.queries is None else f"decoder Q{self.queries}"
        return f"{self.batch}x {what} L{len(self.levels)} P{self.points}"

    def bytes(self, itemsize: int) -> int:
        """Memory that the forward reads and writes at least once."""
        queries = self.queries or self.pixels
        points = 3 * 4 * len(self.levels) * self.points
        per_head = (self.pixels + queries) * CHANNELS * itemsize + queries * points
        return self.batch * HEADS * per_head


CASES = (
    AttentionCase(batch=2, points=4),
    AttentionCase(batch=2, points=8),
    AttentionCase(batch=2, points=4, queries=900),
)


def shrunk(case: AttentionCase) -> AttentionCase:
    """A case for dry runs."""
    return replace(case, levels=((10, 17), (5, 9)))


def make_inputs(case: AttentionCase, dtype: torch.dtype, device: torch.device) -> tuple:
    """Draws value (N, S, G, D), locations (N, Q, G, L, P, 2) and logits, both float32."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    value = normal(case.batch, case.pixels, HEADS, CHANNELS)
    centers = torch.cat([pixel_centers(*size) for size in case.levels])
    if case.queries is not None:
        centers = torch.rand(case.queries, 2, generator=generator)
    sizes = torch.tensor([[width, height] for height, width in case.levels])
    shape = (case.batch, len(centers), HEADS, len(case.levels), case.points)
    offsets = OFFSET_DEVIATION * normal(*shape, 2) / sizes[:, None]
    locations = centers.view(1, -1, 1, 1, 1, 2) + offsets
    return value.to(device, dtype), locations.to(device), normal(*shape).to(device)


def weights_of(logits: Tensor) -> Tensor:
    return logits.flatten(-2).softmax(-1).view_as(logits)


def relative_error(output: Tensor, case: AttentionCase, inputs: tuple) -> float:
    """Distance from the float64 reference, relative to its norm."""
    value, locations, logits = (tensor.double() for tensor in inputs)
    flat = [number for size in case.levels for number in size]
    expected = ms_deform_attn_forward_reference(value, locations, weights_of(logits), flat)
    return ((output.double() - expected).norm() / expected.norm()).item()


def _ours(case: AttentionCase, value: Tensor, locations: Tensor, logits: Tensor) -> Contender:
    def function(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return ms_deform_attn(v, case.levels, x, w)

    return Contender(function, (value, locations, weights_of(logits)), True)


def _ours_packed(
    case: AttentionCase, value: Tensor, locations: Tensor, logits: Tensor
) -> Contender:
    def function(v: Tensor, x: Tensor) -> Tensor:
        return flash_deform_attn(v, case.levels, x, num_points=case.points)

    return Contender(function, (value, pack(locations, logits)), True)


def _level_tensors(case: AttentionCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sizes of the levels, and where each starts."""
    sizes = torch.tensor(case.levels, device=device)
    areas = sizes.prod(1)
    return sizes, areas.cumsum(0) - areas


def _mmcv(case: AttentionCase, value: Tensor, locations: Tensor, logits: Tensor) -> Contender:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    if value.device.type != "cuda":
        raise NotImplementedError("its kernel is for GPUs")
    sizes, starts = _level_tensors(case, value.device)

    def function(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return MultiScaleDeformableAttnFunction.apply(v, sizes, starts, x, w, 64)

    points = (tensor.to(value.dtype) for tensor in (locations, weights_of(logits)))
    return Contender(function, (value, *points), True)


def _original(case: AttentionCase, value: Tensor, locations: Tensor, logits: Tensor) -> Contender:
    from DCNv4.functions import FlashDeformAttnFunction  # the released package, from its sdist

    sizes, starts = _level_tensors(case, value.device)

    def function(v: Tensor, x: Tensor) -> Tensor:
        return FlashDeformAttnFunction.apply(v, sizes, starts, x, 64, case.points)

    packed = pack(locations, logits).to(value.dtype).contiguous()
    return Contender(function, (value, packed), True)


OURS = "ms_deform_attn"
CONTENDERS: dict[str, Callable[..., Contender]] = {
    OURS: _ours,
    "flash_deform_attn": _ours_packed,
    "mmcv": _mmcv,
    "original flash_deform_attn": _original,
}
