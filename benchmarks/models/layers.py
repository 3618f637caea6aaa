"""The layers of the paper's tables of operators, with their projections."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from compare import Implementation, Settings, compare
from measure import Call, Table
from models.networks import without_gradients
from operators.cases import OFFSET_DEVIATION, PAPER_CASES, Case
from torch import Tensor, nn

from dcnv4_mm.layers import DCNv3, DCNv4

# The paper does not say how wide its heads are; Swin's are 32.
HEAD = 32
WINDOW = 7


class Attention(nn.Module):
    """Self-attention over all pixels, or over windows of 7 x 7, with both projections.

    Args:
        channels: Number of channels, a multiple of 32.
        fused: Whether torch may choose a fused kernel; the plain formula keeps all weights.
        window: Size of the windows; ``None`` for none. Images are padded to a multiple of it.
    """

    def __init__(self, channels: int, *, fused: bool, window: int | None = None):
        super().__init__()
        self.fused = fused
        self.window = window
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        if self.window:
            x = self.split(x)
        # [3, N, heads, tokens, 32]
        x = self.project_in(x).flatten(1, -2).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*x) if self.fused else self.plain(*x)
        x = self.project_out(x.transpose(1, 2).flatten(2))
        if self.window:
            x = self.join(x, batch, height, width)
        return x.view(batch, height, width, channels)

    def split(self, x: Tensor) -> Tensor:
        """Windows [N * windows, 7, 7, C] of images [N, H, W, C]."""
        _, height, width, _ = x.shape
        size = self.window
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        return x.transpose(2, 3).flatten(0, 2)

    def join(self, x: Tensor, batch: int, height: int, width: int) -> Tensor:
        size = self.window
        rows, columns = -(-height // size), -(-width // size)
        x = x.view(batch, rows, columns, size, size, -1).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width].contiguous()

    @staticmethod
    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query * HEAD**-0.5) @ key.transpose(-2, -1)
        return weights.softmax(-1) @ value


class TorchvisionDCNv2(nn.Module):
    """DCNv2 as torchvision leaves it to its users: the convolution of offsets is theirs."""

    def __init__(self, channels: int):
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.conv_offset = nn.Conv2d(channels, 27, 3, padding=1)
        self.conv = DeformConv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        offsets, masks = self.conv_offset(x).split((18, 9), dim=1)
        return self.conv(x, offsets.contiguous(), masks.sigmoid())


def _channels(case: Case) -> int:
    return case.groups * case.channels


def _attention(case: Case, **options: object) -> nn.Module:
    if _channels(case) % HEAD:
        raise NotImplementedError(f"needs a multiple of {HEAD} channels")
    return Attention(_channels(case), **options)


def _plain_attention(case: Case, dtype: torch.dtype, device: torch.device) -> nn.Module:
    layer = _attention(case, fused=False)
    weights = case.batch * _channels(case) // HEAD * (case.height * case.width) ** 2
    # Scores and their softmax at once; a machine that runs out of memory may end the process.
    needed = 2 * weights * dtype.itemsize
    if needed > _free_bytes(device):
        raise NotImplementedError(f"its weights alone take {needed / 2**30:.0f} GiB")
    return layer


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _flash(case: Case, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if dtype == torch.float32 and device.type == "cuda":
        raise NotImplementedError("there is no flash attention in float32")
    return _attention(case, fused=True)


def _convolution(case: Case, *, size: int, groups: int = 1) -> nn.Module:
    channels = _channels(case)
    layer = nn.Conv2d(channels, channels, size, padding=size // 2, groups=groups)
    return layer.to(memory_format=torch.channels_last)


def move_offsets(layer: nn.Conv2d | nn.Linear) -> None:
    """Offsets as a trained network has them, not the zeros of a new layer."""
    nn.init.normal_(layer.weight, std=OFFSET_DEVIATION * layer.weight[0].numel() ** -0.5)


def _dcnv2_of_mmcv(case: Case) -> nn.Module:
    from mmcv.ops import ModulatedDeformConv2dPack

    layer = ModulatedDeformConv2dPack(_channels(case), _channels(case), 3, padding=1)
    move_offsets(layer.conv_offset)
    return layer


def _dcnv2_of_torchvision(case: Case) -> nn.Module:
    layer = TorchvisionDCNv2(_channels(case))
    move_offsets(layer.conv_offset)
    return layer


def _dcnv3(case: Case) -> nn.Module:
    layer = DCNv3(_channels(case), groups=case.groups)
    move_offsets(layer.offset)
    return layer


def make_dcnv4(case: Case, change: Callable[[DCNv4], None] | None = None, **options: object):
    """A layer with offsets as after training, passed through ``change``."""
    layer = DCNv4(_channels(case), groups=case.groups, **options)
    move_offsets(layer.offset_mask)
    if change is not None:
        change(layer)
    return layer


OURS = "DCNv4"
CONVOLUTION = "Conv 3x3"
DEPTHWISE = "Depthwise conv 7x7"
DCNV2 = ("DCNv2 (mmcv)", "DCNv2 (torchvision)")
LAYERS: dict[str, Callable[[Case, torch.dtype, torch.device], nn.Module]] = {
    OURS: lambda case, *_: make_dcnv4(case),
    f"{OURS} (lightweight)": lambda case, *_: make_dcnv4(case, without_pointwise=True),
    "DCNv3": lambda case, *_: _dcnv3(case),
    DCNV2[0]: lambda case, *_: _dcnv2_of_mmcv(case),
    DCNV2[1]: lambda case, *_: _dcnv2_of_torchvision(case),
    CONVOLUTION: lambda case, *_: _convolution(case, size=3),
    DEPTHWISE: lambda case, *_: _convolution(case, size=7, groups=_channels(case)),
    "Attention (torch)": _plain_attention,
    "FlashAttention": _flash,
    "Window attention 7x7": lambda case, *_: _attention(case, fused=True, window=WINDOW),
}


def make_input(name: str, case: Case, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Images (N, H, W, C), or (N, C, H, W) for convolutions, as the layer likes them best."""
    shape = (case.batch, case.height, case.width, _channels(case))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    if name in (CONVOLUTION, DEPTHWISE):
        return x.permute(0, 3, 1, 2)  # channels last in memory
    return x.permute(0, 3, 1, 2).contiguous() if name in DCNV2 else x


# Milliseconds on an A100, float32 / float16, in the order of PAPER_CASES.
_PAPER = {
    CONVOLUTION: ".833/.596 .708/.464 .653/.384 .687/.459 1.31/.754 "
    ".602/.234 .623/.199 .725/.214 .422/.281 .532/.318",
    "Attention (torch)": "32.0/20.3 4.06/2.66 1.01/.801 .789/.357 2.28/1.44 "
    "-/- 26.0/13.1 3.05/1.99 .599/.433 4.47/2.69",
    "FlashAttention": "-/2.81 -/.641 -/.256 -/.209 -/.451 -/13.4 -/1.81 -/.354 -/.158 -/.531",
    "Window attention 7x7": "4.48/1.87 2.39/1.00 1.35/.581 .824/.371 2.12/.911 "
    "1.49/.657 .867/.377 .539/.274 .409/.276 .920/.410",
    "DCNv3": "3.28/2.98 1.62/1.42 .846/.748 .526/.546 1.37/1.10 "
    "1.06/.964 .576/.560 .451/.459 .387/.409 .534/.543",
    "DCNv4 (lightweight)": ".762/.547 .419/.313 .375/.192 .306/.130 .389/.249 "
    ".283/.207 .187/.143 .134/.110 .105/.0912 .180/.125",
    "DCNv4": "1.28/.873 .738/.483 .452/.324 .334/.265 .787/.463 "
    ".446/.346 .313/.272 .267/.270 .268/.253 .325/.271",
}


def _parse(figures: str) -> dict[str, dict[str, float]]:
    table = {}
    for case, pair in zip(PAPER_CASES, figures.split(), strict=True):
        both = zip(("float32", "float16"), pair.split("/"), strict=True)
        table[str(case)] = {dtype: float(text) for dtype, text in both if text != "-"}
    return table


# Layer -> case -> dtype -> milliseconds.
PAPER_TABLE = {name: _parse(figures) for name, figures in _PAPER.items()}

# One image each of the paper's shapes that a CPU computes in less than seconds.
CPU_CASES = tuple(
    replace(case, batch=1) for case in PAPER_CASES if case.height * case.width <= 4000
)


def training_call(layer: nn.Module, x: Tensor) -> Call:
    """The forward, and the backward to the input and all parameters."""
    leaves = [x.clone().requires_grad_(), *layer.parameters()]
    gradient = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(leaves[0]), leaves, gradient)


def paper_figure(name: str, case: Case, dtype: str) -> float | None:
    """The paper's time of a layer; a single image is compared with the paper's batch of 64."""
    figures = PAPER_TABLE.get(name, {})
    found = figures.get(str(case)) or figures.get(str(replace(case, batch=64))) or {}
    return found.get(dtype)


def compare_layers(
    table: Table,
    settings: Settings,
    layers: dict[str, Callable[[Case, torch.dtype, torch.device], nn.Module]],
) -> None:
    """Measures forward, and forward with backward, of layers by name."""

    def build(name: str, case: Case, dtype: str, training: bool) -> Implementation:
        kind = getattr(torch, dtype)
        torch.manual_seed(0)
        layer = layers[name](case, kind, settings.device).to(settings.device, kind)
        x = make_input(name, case, kind, settings.device)
        call = training_call(layer, x) if training else without_gradients(layer, x)
        figures: dict[str, object] = dict(
            parameters_millions=1e-6 * sum(p.numel() for p in layer.parameters()),
            paper=None if training else paper_figure(name, case, dtype),
        )
        return Implementation(calls=[call], images=case.batch, figures=figures)

    cases = settings.options.cases or (PAPER_CASES if settings.on_gpu else CPU_CASES)
    for case, dtype, training in product(cases, settings.dtypes, (False, True)):
        compare(
            table,
            settings,
            case=case,
            measured="forward+backward" if training else "forward",
            dtype=dtype,
            builders={name: partial(build, name, case, dtype, training) for name in layers},
            in_graphs=True,
        )


def run(table: Table, settings: Settings) -> None:
    """DCNv4 and the paper's other operators."""
    compare_layers(table, settings, LAYERS)
