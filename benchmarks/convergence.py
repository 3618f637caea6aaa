"""Trains one small network with different operators, and shows which learns how fast.

    python benchmarks/convergence.py [--device cuda] [--seeds 0 1 2]

FlashInternImage-nano learns the generated mini ImageNet: as it is, with the softmax over the masks
that DCNv4 left out, with DCNv3, with attention over all pixels and with convolutions, all with as
many parameters. Every run of a seed sees the same pictures in the same order. A finished run is in
the table and not done again.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from gate import check_operator
from layers import ABLATIONS, Attention
from measure import RESULTS, commit
from table import Table
from torch import Tensor, nn

from dcnv4_mm.backbones import FlashInternImage
from dcnv4_mm.layers import DCNv4

sys.path.append(str(Path(__file__).parents[1] / "dev" / "generators"))
from mini_imagenet import CLASSES, draw_image

SIDE = 48
BATCH = 32
WARM_UP = 100
FIGURES = ("loss", "accuracy", "seconds", "parameters_millions", "threads")


class GlobalAttention(nn.Module):
    """Attention over all pixels of maps (N, H, W, C), with a learned place for each as in ViT."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(side, side, channels))
        self.attention = Attention(channels, fused=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x + self.places)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution of maps (N, H, W, C) between two projections.

    Args:
        channels: C.
        parameters: The layer has at most so many, by its width between the projections.
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


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def network(core_op: str = "DCNv4", replace: Callable[[DCNv4, int], nn.Module] | None = None):
    """FlashInternImage-nano as a classifier.

    Args:
        core_op: The operator.
        replace: What is put in the place of a DCNv4, by that and the side of its maps.
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


CONTENDERS: dict[str, Callable[[], nn.Module]] = {
    "DCNv4": network,
    "DCNv4 with softmax": lambda: network(replace=with_softmax),
    "DCNv3": lambda: network("DCNv3"),
    "Attention": lambda: network(replace=lambda dcn, side: GlobalAttention(dcn.channels, side)),
    "Convolution": lambda: network(replace=lambda dcn, _: Bottleneck(dcn.channels, count(dcn))),
}


def draw(split: int, per_class: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 48, 48), about standard normal, and their classes (N)."""
    pictures = []
    for label, index in itertools.product(range(len(CLASSES)), range(per_class)):
        picture = draw_image(CLASSES[label], np.random.default_rng([split, label, index]))
        pictures.append(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    images = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2)
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
    """Trains a classifier; gives loss and accuracy on held-out pictures (0..1) of each epoch."""
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


def summarize(rows: list[dict[str, str]]) -> dict[str, dict[int, list[float]]]:
    """Accuracies in percent of all seeds, by contender and epoch."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        epoch = int(row["case"].rpartition(" ")[2])
        found.setdefault(row["contender"], {}).setdefault(epoch, []).append(float(row["accuracy"]))
    return found


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Draws the mean accuracy over the epochs, with a band from the worst to the best seed."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, (contender, epochs) in enumerate(summarize(rows).items()):
        means = [statistics.mean(some) for some in epochs.values()]
        axes.plot(list(epochs), means, color=f"C{i}", label=contender)
        lows, highs = ([pick(some) for some in epochs.values()] for pick in (min, max))
        axes.fill_between(list(epochs), lows, highs, color=f"C{i}", alpha=0.15)
    axes.set(xlabel="epoch", ylabel="top-1 accuracy on held-out pictures, percent", ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--per-class", type=int, default=240, help="pictures to learn from")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for CSV and plot")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git is not")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    check_operator(device)
    table = Table(
        "convergence",
        stage="convergence",
        figures=FIGURES,
        folder=arguments.out,
        device=device,
        commit=arguments.commit,
    )
    train = draw(0, arguments.per_class, device)
    held_out = draw(1, 40, device)
    epochs = arguments.epochs
    for seed, name in itertools.product(arguments.seeds, arguments.contenders):
        row = dict(measured=f"{epochs} epochs", dtype="float32", contender=name)
        if table.has(case=f"seed {seed} epoch {epochs}", **row):
            continue
        torch.manual_seed(seed)
        model = CONTENDERS[name]().to(device)
        start = time.perf_counter()
        curve = learn(model, train, held_out, epochs=epochs, seed=seed)
        seconds = time.perf_counter() - start
        for epoch, (loss, share) in enumerate(curve, start=1):
            table.add(
                case=f"seed {seed} epoch {epoch}",
                **row,
                loss=loss,
                accuracy=100 * share,
                seconds=seconds,
                parameters_millions=1e-6 * count(model),
                threads="" if device.type == "cuda" else torch.get_num_threads(),
            )
        shown = ", ".join(f"{100 * share:.0f}" for _, share in curve)
        print(f"seed {seed} {name:20} {seconds:5.0f} s, accuracy {shown} %", flush=True)
    picture = table.path.with_suffix(".png")
    plot(table.rows, picture)
    print(f"saved {table.path} and {picture}")


if __name__ == "__main__":
    main()
