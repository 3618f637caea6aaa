"""Deformable attention of DINO's encoder and decoder: ours, and the others'."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from compare import Settings
from measure import Table
from operators.cases import OFFSET_DEVIATION
from operators.comparison import Operator, compare_operators, pixel_centers, to_float32
from operators.peers import deformops_msda, torch_ms_deform_attn
from torch import Tensor

from dcnv4_mm.ops.flash_deform_attn.layout import pack
from dcnv4_mm.ops.flash_deform_attn.reference import ms_deform_attn_forward_reference
from dcnv4_mm.ops.functional import flash_deform_attn, ms_deform_attn

HEADS, CHANNELS = 8, 32
Levels = tuple[tuple[int, int], ...]
# The pyramids of images of 800 x 1333 and 400 x 672 pixels, strides 8 to 64.
LARGE: Levels = ((100, 167), (50, 84), (25, 42), (13, 21))
SMALL: Levels = ((50, 84), (25, 42), (13, 21), (7, 11))
TINY: Levels = ((10, 17), (5, 9))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Attention over an image's pyramid, and what it shall reach.

    Attributes:
        batch: Number of images.
        points: Per level.
        levels: Rows and columns of each.
        queries: Number of queries; ``None`` for the pixels of all levels, as in an encoder.
        target: Forward speed of one thread in float32, as a multiple of mmcv's.
        backward_target: The same of forward and backward together.
    """

    batch: int = 1
    points: int = 4
    levels: Levels
    queries: int | None = None
    target: float | None = None
    backward_target: float | None = None

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    def __str__(self) -> str:
        what = "encoder" if self.queries is None else "decoder"
        batch = f"{self.batch}x " if self.batch > 1 else ""
        return f"{batch}{what} Q{self.queries or self.pixels} L{len(self.levels)} P{self.points}"

    def bytes(self, itemsize: int, backward: bool) -> int:
        """Size of all tensors of the forward, or of the backward."""
        queries = self.queries or self.pixels
        points = 3 * 4 * len(self.levels) * self.points * queries
        maps = (self.pixels + queries) * CHANNELS * itemsize
        if backward:
            points, maps = 2 * points, maps + self.pixels * CHANNELS * itemsize
        return self.batch * HEADS * (maps + points)


CPU_CASES = (
    Case(levels=SMALL, target=8, backward_target=4),
    Case(levels=SMALL, queries=900),
)
GPU_CASES = (
    Case(batch=2, levels=LARGE),
    Case(batch=2, levels=LARGE, points=8),
    Case(batch=2, levels=LARGE, queries=900),
)
TINY_CASES = (Case(levels=TINY), Case(levels=TINY, queries=9))


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Draws value (N, S, G, D), locations (N, Q, G, L, P, 2) and logits.

    Beside a 16-bit value the points are float32, as under autocast.
    """
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    value = normal(case.batch, case.pixels, HEADS, CHANNELS)
    if case.queries is None:
        centers = torch.cat([pixel_centers(*size) for size in case.levels])
    else:
        centers = torch.rand(case.queries, 2, generator=generator)
    sizes = torch.tensor([[width, height] for height, width in case.levels])
    shape = (case.batch, len(centers), HEADS, len(case.levels), case.points)
    offsets = OFFSET_DEVIATION * normal(*shape, 2) / sizes[:, None]
    locations = centers.view(1, -1, 1, 1, 1, 2) + offsets
    wide = dtype if dtype.itemsize > 4 else torch.float32
    return value.to(device, dtype), locations.to(device, wide), normal(*shape).to(device, wide)


def _weights(logits: Tensor) -> Tensor:
    return logits.flatten(-2).softmax(-1).view_as(logits)


def expected(case: Case, *inputs: Tensor) -> Tensor:
    value, locations, logits = (tensor.double() for tensor in inputs)
    flat = [side for size in case.levels for side in size]
    return ms_deform_attn_forward_reference(value, locations, _weights(logits), flat)


def _ours(case: Case, value: Tensor, locations: Tensor, logits: Tensor) -> Operator:
    def function(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return ms_deform_attn(v, case.levels, x, w)

    return Operator(function=function, inputs=(value, locations, _weights(logits)))


def _ours_packed(case: Case, value: Tensor, locations: Tensor, logits: Tensor) -> Operator:
    def function(v: Tensor, x: Tensor) -> Tensor:
        return flash_deform_attn(v, case.levels, x, num_points=case.points)

    return Operator(function=function, inputs=(value, pack(locations, logits)))


def level_tensors(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sizes of the levels, and the index at which each starts."""
    sizes = torch.tensor(levels, device=device)
    areas = sizes.prod(1)
    return sizes, areas.cumsum(0) - areas


def _mmcv_without_cuda(case: Case, value: Tensor, locations: Tensor, logits: Tensor) -> Operator:
    from dcnv4_mm.integrations import install

    install()
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    inputs, dtype = to_float32(value, locations, _weights(logits))
    sizes, _ = level_tensors(case.levels, value.device)

    def function(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return multi_scale_deformable_attn_pytorch(v, sizes, x, w)

    return Operator(function=function, inputs=inputs, dtype=dtype)


def _peer(
    make: Callable[..., Operator], case: Case, value: Tensor, locations: Tensor, logits: Tensor
) -> Operator:
    """Another package's implementation, with all tensors in the dtype of the value."""
    points = (tensor.to(value.dtype) for tensor in (locations, _weights(logits)))
    return make(value, level_tensors(case.levels, value.device), *points)


def need_compiled_mmcv() -> None:
    """Raises unless mmcv has its own kernels; ``install()`` serves mmcv-lite with ours."""
    import mmcv._ext

    if not str(getattr(mmcv._ext, "__file__", "")).endswith(".so"):
        raise NotImplementedError("mmcv is installed without its compiled operators")


def _mmcv(case: Case, value: Tensor, locations: Tensor, logits: Tensor) -> Operator:
    need_compiled_mmcv()
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    sizes, starts = level_tensors(case.levels, value.device)

    def function(v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return MultiScaleDeformableAttnFunction.apply(v, sizes, starts, x, w, 64)

    points = (tensor.to(value.dtype) for tensor in (locations, _weights(logits)))
    return Operator(function=function, inputs=(value, *points))


def _original(case: Case, value: Tensor, locations: Tensor, logits: Tensor) -> Operator:
    from DCNv4.functions import FlashDeformAttnFunction  # the released package, from its sdist

    sizes, starts = level_tensors(case.levels, value.device)

    def function(v: Tensor, x: Tensor) -> Tensor:
        return FlashDeformAttnFunction.apply(v, sizes, starts, x, 64, case.points)

    packed = pack(locations, logits).to(value.dtype).contiguous()
    return Operator(function=function, inputs=(value, packed))


OURS, PEER = "ms_deform_attn", "mmcv without CUDA"
OPERATORS: dict[str, Callable[..., Operator]] = {
    OURS: _ours,
    "flash_deform_attn": _ours_packed,
    PEER: _mmcv_without_cuda,
    "torch-ms-deform-attn": partial(_peer, torch_ms_deform_attn),
    "deformops": partial(_peer, deformops_msda),
}
PACKAGES = ("torch-ms-deform-attn", "deformops")
GPU_OPERATORS = OPERATORS | {"mmcv": _mmcv, "original flash_deform_attn": _original}


def _targets(case: Case, measured: str) -> dict[tuple[str, int], str]:
    target = case.target if measured == "forward" else case.backward_target
    targets = {} if target is None else {(PEER, 1): f">= {target:g}"}
    least = ">= 5" if measured == "forward" else ">= 3"
    return targets | {(name, 1): least for name in PACKAGES}


def run(table: Table, settings: Settings) -> None:
    """Ours and the others'."""
    cases = GPU_CASES if settings.on_gpu else CPU_CASES
    compare_operators(
        table,
        settings,
        cases=TINY_CASES if settings.options.tiny else cases,
        make_inputs=make_inputs,
        expected=expected,
        operators=GPU_OPERATORS if settings.on_gpu else OPERATORS,
        targets=_targets,
    )
