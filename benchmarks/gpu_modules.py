"""The layers of the paper's tables of operators, and the paper's figures."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from cases import PAPER_CASES, Case
from torch import Tensor, nn

from dcnv4_mm.layers import DCNv4

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


def _attention(case: Case, **options: object) -> nn.Module:
    channels = case.groups * case.channels
    if channels % HEAD:
        raise NotImplementedError(f"needs a multiple of {HEAD} channels")
    return Attention(channels, **options)


def _flash(case: Case, dtype: torch.dtype) -> nn.Module:
    if dtype == torch.float32:
        raise NotImplementedError("there is no flash attention in float32")
    return _attention(case, fused=True)


def _convolution(case: Case, dtype: torch.dtype) -> nn.Module:
    channels = case.groups * case.channels
    return nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)


def _dcnv4(case: Case, *, lightweight: bool) -> nn.Module:
    layer = DCNv4(case.groups * case.channels, groups=case.groups, without_pointwise=lightweight)
    # Offsets as a trained network has them, not the zeros of a new layer.
    nn.init.normal_(layer.offset_mask.weight, std=2 * layer.channels**-0.5)
    return layer


CONVOLUTION = "Conv 3x3"
MODULES: dict[str, Callable[[Case, torch.dtype], nn.Module]] = {
    CONVOLUTION: _convolution,
    "Attention (torch)": lambda case, _: _attention(case, fused=False),
    "FlashAttention": _flash,
    "Window attention 7x7": lambda case, _: _attention(case, fused=True, window=WINDOW),
    "DCNv4 (lightweight)": lambda case, _: _dcnv4(case, lightweight=True),
    "DCNv4": lambda case, _: _dcnv4(case, lightweight=False),
}


def make_module(
    name: str, case: Case, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    """A layer and its input, ready to be called without gradients."""
    module = MODULES[name](case, dtype).to(device, dtype).eval().requires_grad_(False)
    shape = (case.batch, case.height, case.width, case.groups * case.channels)
    x = torch.randn(shape, device=device, dtype=dtype)
    if name == CONVOLUTION:
        x = x.permute(0, 3, 1, 2)  # channels last in memory
    return lambda: module(x)


# Milliseconds on an A100, float32 / float16, in the order of PAPER_CASES.
_PAPER = {
    CONVOLUTION: ".833/.596 .708/.464 .653/.384 .687/.459 1.31/.754 "
    ".602/.234 .623/.199 .725/.214 .422/.281 .532/.318",
    "Attention (torch)": "32.0/20.3 4.06/2.66 1.01/.801 .789/.357 2.28/1.44 "
    "-/- 26.0/13.1 3.05/1.99 .599/.433 4.47/2.69",
    "FlashAttention": "-/2.81 -/.641 -/.256 -/.209 -/.451 -/13.4 -/1.81 -/.354 -/.158 -/.531",
    "Window attention 7x7": "4.48/1.87 2.39/1.00 1.35/.581 .824/.371 2.12/.911 "
    "1.49/.657 .867/.377 .539/.274 .409/.276 .920/.410",
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
