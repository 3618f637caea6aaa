"""Attention of BEV queries to cameras: ours, and the re-batched path that it replaces.

Re-batched: the queries of each camera are padded to the longest list, with sampling locations and
weights in memory, and the results are added up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from compare import Settings
from measure import Table
from operators.cases import OFFSET_DEVIATION
from operators.comparison import Operator, compare_operators
from operators.flash_deform_attn import TINY, Levels, level_tensors, need_compiled_mmcv
from torch import Tensor

from dcnv4_mm.ops.bev_cross_attn.reference import bev_cross_attn_forward_reference
from dcnv4_mm.ops.flash_deform_attn.layout import pack, unpack
from dcnv4_mm.ops.functional import bev_cross_attn, ms_deform_attn

HEADS, CHANNELS, CAMERAS, PILLAR, POINTS = 8, 32, 6, 4, 8
# Cameras that see a query, of a rig like that of nuScenes.
HITS_PER_QUERY = 1.12


@dataclass(frozen=True, kw_only=True)
class Case:
    """Spatial cross-attention of BEVFormerV2 to images of 640 x 1600 pixels."""

    batch: int = 1
    side: int = 200
    levels: Levels = ((80, 200), (40, 100), (20, 50), (10, 25))

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    def __str__(self) -> str:
        return f"{self.batch}x BEV {self.side}x{self.side} N{CAMERAS}"

    def bytes(self, itemsize: int, backward: bool) -> int:
        """Size of all tensors of the forward, or of the backward."""
        queries = self.side**2
        maps = CAMERAS * self.pixels * (2 if backward else 1) + queries
        points = 4 * queries * HEADS * 3 * len(self.levels) * POINTS * (2 if backward else 1)
        return self.batch * (HEADS * CHANNELS * itemsize * maps + points)


CASES = (Case(), Case(side=100))
TINY_CASES = (Case(side=10, levels=TINY),)


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Draws value, offsets and logits, reference points, and which camera sees a query.

    A camera sees a sector of the BEV, the columns of its image running over the sector.
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
    bev_mask = across.abs() < 0.5
    down = 0.4 + 0.1 / (distance + 0.05) * torch.linspace(-0.5, 1, PILLAR)[:, None]
    down = down.T.expand(CAMERAS, -1, -1)
    reference_points = torch.stack(((across + 0.5)[..., None].expand_as(down), down), dim=-1)
    reference_points, bev_mask = (
        t.expand(case.batch, *t.shape).contiguous() for t in (reference_points, bev_mask)
    )
    tensors = value.to(dtype), offsets_logits, reference_points, bev_mask
    return tuple(tensor.to(device) for tensor in tensors)


def expected(
    case: Case, value: Tensor, offsets_logits: Tensor, reference_points: Tensor, bev_mask: Tensor
) -> Tensor:
    flat = [side for size in case.levels for side in size]
    wide = value.double(), offsets_logits.double(), reference_points.double(), bev_mask
    return bev_cross_attn_forward_reference(*wide, flat, POINTS)


def _ours(
    case: Case, value: Tensor, offsets_logits: Tensor, reference_points: Tensor, bev_mask: Tensor
) -> Operator:
    def function(v: Tensor, x: Tensor) -> Tensor:
        return bev_cross_attn(v, case.levels, x, reference_points, bev_mask, num_points=POINTS)

    return Operator(function=function, inputs=(value, offsets_logits))


def _rebatched(
    attend: Callable[[Case, Tensor, Tensor, Tensor], Tensor],
    case: Case,
    value: Tensor,
    offsets_logits: Tensor,
    reference_points: Tensor,
    bev_mask: Tensor,
) -> Operator:
    """``attend(case, value, locations, weights)`` for the lists of all cameras at once."""
    counts = bev_mask.sum(1).clamp(min=1).unsqueeze(-1)
    # The lists are made once, outside of what is measured: [B * N, longest], padded with 0.
    seen = [camera.nonzero()[:, 0] for camera in bev_mask.flatten(0, 1)]
    lists = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in seen], batch_first=True)
    images = torch.arange(len(lists), device=lists.device)[:, None]
    pillars = reference_points.flatten(0, 1)[images, lists].repeat(1, 1, POINTS // PILLAR, 1)
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

    return Operator(function=function, inputs=(value, offsets_logits))


def _ms_deform_attn(case: Case, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, case.levels, locations, weights)


def _mmcv(case: Case, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    need_compiled_mmcv()
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = level_tensors(case.levels, value.device)
    points = (tensor.to(value.dtype) for tensor in (locations, weights))
    return MultiScaleDeformableAttnFunction.apply(value, *shapes, *points, 64)


OPERATORS: dict[str, Callable[..., Operator]] = {
    "bev_cross_attn": _ours,
    "ms_deform_attn, re-batched": partial(_rebatched, _ms_deform_attn),
}
GPU_OPERATORS = OPERATORS | {"mmcv, re-batched": partial(_rebatched, _mmcv)}


def run(table: Table, settings: Settings) -> None:
    """Ours and the re-batched path."""
    compare_operators(
        table,
        settings,
        cases=TINY_CASES if settings.options.tiny else CASES,
        make_inputs=make_inputs,
        expected=expected,
        operators=GPU_OPERATORS if settings.on_gpu else OPERATORS,
    )
