"""Attention of BEV queries to cameras on a GPU, and the path that it replaces.

The others re-batch: the queries of each camera are padded to the longest list, with sampling
locations and weights in memory, and what they find is added up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from gpu_peers import Contender
from torch import Tensor

from dcnv4_mm.ops.bev_cross_attn.reference import bev_cross_attn_forward_reference
from dcnv4_mm.ops.flash_deform_attn.layout import pack, unpack
from dcnv4_mm.ops.functional import bev_cross_attn, ms_deform_attn

HEADS, CHANNELS, CAMERAS, PILLAR, POINTS = 8, 32, 6, 4, 8
OFFSET_DEVIATION = 2.0
# Cameras that see a query, of a rig like that of nuScenes.
HITS_PER_QUERY = 1.12


@dataclass(frozen=True, kw_only=True)
class BEVCase:
    """Spatial cross-attention of BEVFormerV2 to pictures of 640 x 1600."""

    batch: int = 1
    side: int = 200
    levels: tuple[tuple[int, int], ...] = ((80, 200), (40, 100), (20, 50), (10, 25))

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    def __str__(self) -> str:
        return f"{self.batch}x BEV {self.side}x{self.side} N{CAMERAS}"

    def bytes(self, itemsize: int) -> int:
        """Memory that the forward reads and writes at least once."""
        queries = self.side**2
        channels = HEADS * CHANNELS * itemsize * (CAMERAS * self.pixels + queries)
        return self.batch * (channels + 4 * queries * HEADS * 3 * len(self.levels) * POINTS)


CASES = (BEVCase(), BEVCase(side=100))


def shrunk(case: BEVCase) -> BEVCase:
    """A case for dry runs."""
    return replace(case, side=case.side // 10, levels=((10, 17), (5, 9)))


def make_inputs(case: BEVCase, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Draws value, offsets and logits, references, and hits.

    A camera sees a sector of the BEV, the columns of its picture running over the sector.
    """
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    value = normal(case.batch, CAMERAS, case.pixels, HEADS, CHANNELS)
    shape = (case.batch, case.side**2, HEADS, len(case.levels), POINTS)
    offsets_logits = pack(OFFSET_DEVIATION * normal(*shape, 2), normal(*shape))
    along = torch.arange(case.side) + 0.5 - case.side / 2
    y, x = torch.meshgrid(along, along, indexing="ij")
    turns = torch.atan2(y, x).flatten() / (2 * torch.pi) + 0.5
    distance = torch.hypot(x, y).flatten() / case.side
    centers = (torch.arange(CAMERAS) + 0.5) / CAMERAS
    # [N, Q], from the middle of the camera's sector, in sectors
    across = ((turns - centers[:, None] + 0.5) % 1 - 0.5) * CAMERAS / HITS_PER_QUERY
    hits = across.abs() < 0.5
    down = 0.4 + 0.1 / (distance + 0.05) * torch.linspace(-0.5, 1, PILLAR)[:, None]
    down = down.T.expand(CAMERAS, -1, -1)
    references = torch.stack(((across + 0.5)[..., None].expand_as(down), down), dim=-1)
    references, hits = (t.expand(case.batch, *t.shape).contiguous() for t in (references, hits))
    tensors = value.to(dtype), offsets_logits, references, hits
    return tuple(tensor.to(device) for tensor in tensors)


def relative_error(output: Tensor, case: BEVCase, inputs: tuple[Tensor, ...]) -> float:
    """Distance from the float64 reference, relative to its norm."""
    value, offsets_logits, references, hits = inputs
    flat = [number for size in case.levels for number in size]
    wide = (value.double(), offsets_logits.double(), references.double(), hits)
    expected = bev_cross_attn_forward_reference(*wide, flat, POINTS)
    return ((output.double() - expected).norm() / expected.norm()).item()


def _ours(
    case: BEVCase, value: Tensor, offsets_logits: Tensor, references: Tensor, hits: Tensor
) -> Contender:
    def function(v: Tensor, x: Tensor) -> Tensor:
        return bev_cross_attn(v, case.levels, x, references, hits, num_points=POINTS)

    return Contender(function, (value, offsets_logits), True)


def _rebatched(
    attend: Callable[[BEVCase, Tensor, Tensor, Tensor], Tensor],
    case: BEVCase,
    value: Tensor,
    offsets_logits: Tensor,
    references: Tensor,
    hits: Tensor,
) -> Contender:
    """``attend(case, value, locations, weights)`` for the lists of all cameras at once."""
    counts = hits.sum(1).clamp(min=1).unsqueeze(-1)
    # The lists are made once, outside of what is measured: [B * N, longest], padded with 0.
    seen = [camera.nonzero()[:, 0] for camera in hits.flatten(0, 1)]
    lists = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in seen], batch_first=True)
    images = torch.arange(len(lists), device=lists.device)[:, None]
    pillars = references.flatten(0, 1)[images, lists].repeat(1, 1, POINTS // PILLAR, 1)
    sizes = torch.tensor(case.levels, device=lists.device).flip(-1)[:, None]

    def function(v: Tensor, x: Tensor) -> Tensor:
        offsets, logits = unpack(x, len(case.levels), POINTS)
        samples = images // CAMERAS
        locations = pillars[:, :, None, None] + offsets[samples, lists] / sizes
        weights = logits[samples, lists].flatten(-2).softmax(-1).view(*locations.shape[:-1])
        found = attend(case, v.flatten(0, 1), locations, weights) * real.unsqueeze(-1)
        slots = found.new_zeros(*counts.shape[:2], found.shape[-1])
        slots = slots.index_put((samples.expand_as(lists), lists), found, accumulate=True)
        return slots / counts

    return Contender(function, (value, offsets_logits), True)


def _ms_deform_attn(case: BEVCase, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, case.levels, locations, weights)


def _mmcv(case: BEVCase, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    if value.device.type != "cuda":
        raise NotImplementedError("its kernel is for GPUs")
    sizes = torch.tensor(case.levels, device=value.device)
    areas = sizes.prod(1)
    points = (tensor.to(value.dtype) for tensor in (locations, weights))
    return MultiScaleDeformableAttnFunction.apply(
        value, sizes, areas.cumsum(0) - areas, *points, 64
    )


OURS = "bev_cross_attn"
CONTENDERS: dict[str, Callable[..., Contender]] = {
    OURS: _ours,
    "ms_deform_attn, re-batched": partial(_rebatched, _ms_deform_attn),
    "mmcv, re-batched": partial(_rebatched, _mmcv),
}
