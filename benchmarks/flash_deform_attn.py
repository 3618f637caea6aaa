"""Deformable attention against mmcv's function for machines without CUDA: speed of one call."""

import functools
import itertools
from dataclasses import dataclass

import torch
from cases import pixel_centers
from dcnv4 import peer_dtype
from measure import Record, interleaved, ratio
from torch import Tensor

from dcnv4_mm.ops.flash_deform_attn.layout import pack
from dcnv4_mm.ops.functional import flash_deform_attn, ms_deform_attn

try:
    from dcnv4_mm.integrations import install

    install()
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
except ImportError as error:
    multi_scale_deformable_attn_pytorch = None
    print(f"flash_deform_attn: without its peer, mmcv: {error}")

HEADS, CHANNELS, POINTS = 8, 32, 4
# The pyramid of an image of 400 x 672 pixels, strides 8 to 64.
LEVELS = ((50, 84), (25, 42), (13, 21), (7, 11))
# Offsets of trained networks spread over some pixels of each level.
OFFSET_DEVIATION = 2.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Attention as in DINO, and what it is to reach.

    Attributes:
        queries: Number of queries; in the encoder they are the pixels of all levels.
        target: Forward speed of one thread in float32, as a multiple of mmcv's.
        backward_target: The same of forward and backward together.
    """

    name: str
    queries: int
    target: float | None = None
    backward_target: float | None = None

    def __str__(self) -> str:
        return f"{self.name} Q{self.queries} L{len(LEVELS)} P{POINTS}"


PIXELS = sum(height * width for height, width in LEVELS)
CASES = (
    Case(name="encoder", queries=PIXELS, target=8, backward_target=4),
    Case(name="decoder", queries=900),
)


def make_inputs(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Draws value, locations around the queries' places, logits and a gradient."""
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    value = normal(1, PIXELS, HEADS, CHANNELS)
    if case.queries == PIXELS:
        centers = torch.cat([pixel_centers(height, width) for height, width in LEVELS])
    else:
        centers = torch.rand(case.queries, 2, generator=generator)
    sizes = torch.tensor([[width, height] for height, width in LEVELS])
    shape = (1, case.queries, HEADS, len(LEVELS), POINTS)
    offsets = OFFSET_DEVIATION * normal(*shape, 2) / sizes[:, None]
    locations = centers.view(1, -1, 1, 1, 1, 2) + offsets
    logits, grad = normal(*shape), normal(1, case.queries, HEADS * CHANNELS)
    # Beside a 16-bit value the points are float32, as under autocast.
    locations, logits = (tensor.to(peer_dtype(dtype)) for tensor in (locations, logits))
    return value.to(dtype), locations, logits, grad.to(dtype)


OURS = "ms_deform_attn"
PEER = "mmcv without CUDA"


def prepare(name: str, case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Inputs as a contender takes them, then the gradient; the logits become weights outside."""
    dtype = peer_dtype(dtype) if name == PEER else dtype
    value, locations, logits, grad = make_inputs(case, dtype)
    if name == "flash_deform_attn":
        return value, pack(locations, logits), grad
    return value, locations, logits.flatten(-2).softmax(-1).view_as(logits), grad


def contenders() -> dict[str, object]:
    """Functions of the inputs by name; ours first."""
    shapes = torch.tensor(LEVELS)
    functions = {
        OURS: lambda value, *points: ms_deform_attn(value, LEVELS, *points),
        "flash_deform_attn": lambda value, points: flash_deform_attn(
            value, LEVELS, points, num_points=POINTS
        ),
    }
    if multi_scale_deformable_attn_pytorch is not None:
        functions[PEER] = lambda value, *points: multi_scale_deformable_attn_pytorch(
            value, shapes, *points
        )
    return functions


def check(case: Case, functions: dict, inputs: dict[str, tuple[Tensor, ...]]) -> None:
    """Raises unless all contenders compute the same."""
    exact = functions[OURS](*(tensor.double() for tensor in inputs[OURS][:-1]))
    for name, function in functions.items():
        output = function(*inputs[name][:-1])
        worst = (output.double() - exact).abs().max().item()
        # Coordinates, in float32, lose the bits of the level's width; results are up to 4.
        coordinates = 50 * torch.finfo(torch.float32).eps * LEVELS[0][1]
        tolerance = coordinates + 20 * torch.finfo(inputs[OURS][0].dtype).eps
        if worst > tolerance:
            raise RuntimeError(f"{case}: {name} differs by {worst:.2g}, more than {tolerance:.2g}")


def run(record: Record, threads: list[int], dtypes: list[torch.dtype], seconds: float) -> None:
    """Measures every case, forward, and forward with backward."""
    functions = contenders()
    for case, dtype in itertools.product(CASES, dtypes):
        inputs = {name: prepare(name, case, dtype) for name in functions}
        check(case, functions, inputs)
        leaves = {
            name: [tensor.clone().requires_grad_() for tensor in tensors[:-1]]
            for name, tensors in inputs.items()
        }

        def forward(name, inputs=inputs):
            with torch.inference_mode():
                functions[name](*inputs[name][:-1])

        def both(name, inputs=inputs, leaves=leaves):
            torch.autograd.grad(functions[name](*leaves[name]), leaves[name], inputs[name][-1])

        for measured, call, target in (
            ("forward", forward, case.target),
            ("forward+backward", both, case.backward_target),
        ):
            pairs = list(itertools.product(functions, threads))
            times = interleaved(
                {f"{name}/{count}": functools.partial(call, name) for name, count in pairs},
                seconds=seconds,
                threads={f"{name}/{count}": count for name, count in pairs},
            )
            for name, count in pairs:
                peer_type = peer_dtype(dtype) if name == PEER else dtype
                ours, peer = times[f"{OURS}/{count}"], times[f"{name}/{count}"]
                is_target = name == PEER and count == 1 and dtype == torch.float32
                record.add(
                    benchmark="flash_deform_attn",
                    case=str(case),
                    measured=measured,
                    dtype=str(peer_type)[6:],
                    threads=count,
                    contender=name,
                    times=peer,
                    ratio=None if name == OURS else ratio(peer, ours),
                    target=target if is_target else None,
                )
