"""Learning curves of one small network with different operators.

FlashInternImage-nano learns the generated mini ImageNet: as it is, with the softmax over the masks
that DCNv4 removed, with DCNv3, with attention over all pixels and with convolutions, all with as
many parameters. Every run of a seed sees the same images in the same order.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from compare import Settings
from measure import Table
from models.ablation import ABLATIONS
from models.layers import Attention
from models.networks import parameters_millions
from torch import Tensor, nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.layers import DCNv4

sys.path.append(str(Path(__file__).parents[2] / "dev" / "generators"))
from mini_imagenet import CLASSES, draw_image

SIDE = 48
BATCH = 32
WARM_UP = 100


class GlobalAttention(nn.Module):
    """Attention over all pixels of maps (N, H, W, C), with a position embedding as in ViT."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(side, side, channels))
        self.attention = Attention(channels, fused=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x + self.positions)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution of maps (N, H, W, C) between two projections.

    Args:
        channels: C.
        parameters: Upper limit; the width between the projections follows from it.
    """

    def __init__(self, channels: int, parameters: int):
        super().__init__()
        # 9 width^2 + 2 channels width + 2 width + channels = parameters
        linear = 2 * channels + 2
        width = (math.isqrt(linear**2 + 36 * (parameters - channels)) - linear) // 18
        self.project_in = nn.Linear(channels, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.project_out = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x).permute(0, 3, 1, 2)
        return self.project_out(self.convolution(x).permute(0, 2, 3, 1))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def network(core_op: str = "DCNv4", replace: Callable[[DCNv4, int], nn.Module] | None = None):
    """FlashInternImage-nano as a classifier.

    Args:
        core_op: The operator.
        replace: Gives the module that replaces a DCNv4, from that and the side of its maps.
    """
    model = FlashInternImage("nano", core_op=core_op, num_classes=len(CLASSES))
    if replace is not None:
        for stage, level in enumerate(model.levels):
            for block in level.blocks:
                block.dcn = replace(block.dcn, SIDE >> stage + 2)
    return model


def with_softmax(layer: DCNv4, _: int) -> DCNv4:
    ABLATIONS["softmax"](layer)
    return layer


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "DCNv4": network,
    "DCNv4 with softmax": lambda: network(replace=with_softmax),
    "DCNv3": lambda: network("DCNv3"),
    "Attention": lambda: network(replace=lambda dcn, side: GlobalAttention(dcn.channels, side)),
    "Convolution": lambda: network(replace=lambda dcn, _: Bottleneck(dcn.channels, _count(dcn))),
}


def draw(split: int, per_class: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 48, 48), about standard normal, and their classes (N)."""
    pixels = []
    for label, index in itertools.product(range(len(CLASSES)), range(per_class)):
        image = draw_image(CLASSES[label], np.random.default_rng([split, label, index]))
        pixels.append(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    images = torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2)
    labels = torch.arange(len(CLASSES), device=device).repeat_interleave(per_class)
    return (images / 255 - 0.45) / 0.25, labels


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch, mirrored or not and moved by up to six pixels."""
    if torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    shift = torch.randint(-6, 7, (2,), generator=generator).tolist()
    return images.roll(shift, (2, 3))


def learn(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    epochs: int,
    seed: int,
) -> list[tuple[float, float]]:
    """Trains a classifier; returns loss and accuracy on held-out images (0..1) of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = train
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    curve = []
    for _ in range(epochs):
        model.train()
        losses = []
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for chosen in order.split(BATCH)[: len(images) // BATCH]:
            loss = F.cross_entropy(model(augment(images[chosen], generator)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        curve.append((torch.stack(losses).mean().item(), accuracy(model, *held_out)))
    return curve


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    found = torch.cat([model(some).argmax(1) for some in images.split(100)])
    return (found == labels).float().mean().item()


def run(table: Table, settings: Settings) -> None:
    """A run for each seed and operator; a row for each epoch."""
    options, device = settings.options, settings.device
    train = draw(0, options.per_class, device)
    held_out = draw(1, min(40, options.per_class), device)
    epochs, threads = options.epochs, settings.threads[-1]
    torch.set_num_threads(threads)
    for seed, name in itertools.product(options.seeds, options.implementations or NETWORKS):
        row = dict(measured=f"{epochs} epochs", dtype="float32", implementation=name)
        row["threads"] = "" if settings.on_gpu else threads
        if table.has(case=f"seed {seed} epoch {epochs}", **row):
            continue
        torch.manual_seed(seed)
        model = NETWORKS[name]().to(device)
        start = time.perf_counter()
        curve = learn(model, train, held_out, epochs=epochs, seed=seed)
        per_epoch = 1e3 * (time.perf_counter() - start) / epochs
        for epoch, (loss, correct) in enumerate(curve, start=1):
            table.add(
                case=f"seed {seed} epoch {epoch}",
                **row,
                milliseconds=per_epoch,
                loss=loss,
                accuracy=100 * correct,
                parameters_millions=parameters_millions(model),
            )
