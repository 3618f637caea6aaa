"""Trains U-Nets on four shapes on a CPU, with DCNv4 and with convolutions at equal parameters.

    python examples/latent_diffusion/trial.py [--quick] [--record DIR]

A classifier that was trained on the data measures how many samples are of the requested class.
Finished steps are not repeated; an interrupted training is resumed.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from data import ImageFolder
from diffusers import UNet2DModel
from PIL import Image
from pipeline import load_pipeline
from sample import write_samples
from settings import OPERATORS
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = HERE / "configs" / "mini.yaml"
# Minimum fraction of samples of the requested class; 0.25 would be chance.
TARGET = 0.8
MINUTES = 20
QUICK = ("steps=4", "save_every=2", "sample_steps=1", "log_every=1", "warmup_steps=1")


@dataclass(frozen=True)
class Outcome:
    """Results of one operator; images per second are of CPU time."""

    operator: str
    accuracy: float
    loss: float
    minutes: float
    parameters: int
    trained_per_second: float
    sampled_per_second: float


def run(*command: object) -> None:
    """Runs a program of this project."""
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)


def stack(dataset: ImageFolder) -> tuple[Tensor, Tensor]:
    """All images [N, 3, H, W] and labels [N]."""
    images, labels = zip(*dataset, strict=True)
    return torch.stack(images), torch.stack(labels)


def train_classifier(data: Path, *, steps: int) -> tuple[nn.Module, float]:
    """Trains a small classifier; returns it and its accuracy on held-out images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, wider in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(wide, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 4))
    images, labels = stack(ImageFolder(data / "train", 32))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return model, accuracy_of(model, ImageFolder(data / "val", 32))


@torch.inference_mode()
def accuracy_of(classifier: nn.Module, dataset: ImageFolder) -> float:
    """Fraction of images that a classifier assigns to the class of their folder."""
    images, labels = stack(dataset)
    return (classifier(images).argmax(1) == labels).float().mean().item()


def images_per_second(
    unets: dict[str, UNet2DModel], *, training: bool, turns: int
) -> dict[str, float]:
    """Images per second of CPU time in batches of 16 in float32; networks are interleaved."""
    sample, times = torch.randn(16, 3, 32, 32), torch.randint(1000, (16,))
    labels = torch.randint(4, (16,))
    taken: dict[str, list[float]] = {name: [] for name in unets}
    for _ in range(turns):
        for name, unet in unets.items():
            start = time.process_time()
            with torch.set_grad_enabled(training):
                predicted = unet(sample, times, labels).sample
            if training:
                predicted.square().mean().backward()
            taken[name].append(time.process_time() - start)
    return {name: 16 / statistics.median(values) for name, values in taken.items()}


def read_log(folder: Path) -> dict[int, dict[str, float]]:
    """Lines of a training's log by step; after a resume, the later line counts."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines}


def minutes_of(log: dict[int, dict[str, float]]) -> float:
    """Minutes spent in the steps of a training."""
    pairs = pairwise([0, *sorted(log)])
    return sum((b - a) * log[b]["seconds_per_step"] for a, b in pairs) / 60


def draw(work_dir: Path, outcomes: list[Outcome]) -> Path:
    """Plots the losses, and samples of every network beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.4), layout="constrained")
    for outcome in outcomes:
        log = read_log(work_dir / outcome.operator)
        axes[0].plot(list(log), [line["loss"] for line in log.values()], label=outcome.operator)
    axes[0].set(title="training loss", xlabel="step", ylim=(0, None))
    axes[0].grid(alpha=0.3)
    axes[0].legend()
    for panel, outcome in zip(axes[1:], outcomes, strict=True):
        with Image.open(work_dir / outcome.operator / "generated" / "grid.png") as grid:
            panel.imshow(grid, interpolation="nearest")
        panel.set_title(f"{outcome.operator}: {100 * outcome.accuracy:.1f} % as requested")
        panel.axis("off")
    path = work_dir / "outcome.png"
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def table(outcomes: list[Outcome], held_out: float) -> str:
    """The results as a Markdown table."""
    rows = [
        "| | " + " | ".join(outcome.operator for outcome in outcomes) + " |",
        "| --- |" + " --- |" * len(outcomes),
    ]
    for name, text in {
        "samples of the requested class": lambda o: f"{100 * o.accuracy:.1f} %",
        "loss, mean of the last lines": lambda o: f"{o.loss:.4f}",
        "parameters": lambda o: f"{o.parameters:,}",
        "training, images/s": lambda o: f"{o.trained_per_second:.0f}",
        "one evaluation, images/s": lambda o: f"{o.sampled_per_second:.0f}",
        "training, minutes": lambda o: f"{o.minutes:.1f}",
    }.items():
        rows.append(f"| {name} | " + " | ".join(map(text, outcomes)) + " |")
    return "\n".join(
        [
            *rows,
            "",
            f"The classifier is right for {100 * held_out:.1f} % of held-out images.",
        ]
    )


def attempt(operator: str, work_dir: Path, *, quick: bool) -> None:
    """Trains one network and generates its samples."""
    folder, data = work_dir / operator, work_dir / "data"
    changes = ("--set", *QUICK) if quick else ()
    if not (folder / "pipeline").is_dir():
        settings = (CONFIG, data / "train", "--out-dir", folder, "--operator", operator)
        run(HERE / "train.py", *settings, "--resume", *changes)
    if not (folder / "generated" / "grid.png").is_file():
        pipeline, classes = load_pipeline(folder / "pipeline"), list(map(str, range(4)))
        sizes = dict(count=2, steps=2) if quick else dict(count=50, steps=30)
        write_samples(pipeline, classes, folder / "generated", **sizes, batch_size=50, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train U-Nets on four shapes on a CPU.")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/diffusion[-quick]")
    parser.add_argument("--record", type=Path, metavar="DIR", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="a few steps: a test of all parts")
    args = parser.parse_args()
    work_dir = args.work_dir or ROOT / "work_dirs" / f"diffusion{'-quick' * args.quick}"
    work_dir, sizes = work_dir.resolve(), ("--num-train", 8, "--num-val", 2) if args.quick else ()
    run(ROOT / "dev" / "generators" / "mini_shapes.py", work_dir / "data", *sizes)
    for operator in OPERATORS:
        attempt(operator, work_dir, quick=args.quick)
    classifier, held_out = train_classifier(work_dir / "data", steps=2 if args.quick else 400)
    unets = {name: load_pipeline(work_dir / name / "pipeline").unet for name in OPERATORS}
    turns = 1 if args.quick else 9
    trained = images_per_second(unets, training=True, turns=turns)
    evaluated = images_per_second(unets, training=False, turns=turns)
    outcomes = []
    for name, unet in unets.items():
        log = read_log(work_dir / name)
        outcomes.append(
            Outcome(
                operator=name,
                accuracy=accuracy_of(classifier, ImageFolder(work_dir / name / "generated", 32)),
                loss=statistics.fmean(log[step]["loss"] for step in sorted(log)[-10:]),
                minutes=minutes_of(log),
                parameters=unet.num_parameters(),
                trained_per_second=trained[name],
                sampled_per_second=evaluated[name],
            )
        )
    figure, summary = draw(work_dir, outcomes), table(outcomes, held_out)
    print(f"{summary}\n{figure}")
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        (args.record / "summary.md").write_text(f"{summary}\n")
        shutil.copy(figure, args.record)
        for name in OPERATORS:
            shutil.copy(work_dir / name / "log.jsonl", args.record / f"{name}.jsonl")
    first = outcomes[0]
    if not args.quick and (first.accuracy < TARGET or max(o.minutes for o in outcomes) > MINUTES):
        raise SystemExit(f"error: missed: {TARGET:.0%} as requested, {MINUTES} minutes of training")


if __name__ == "__main__":
    main()
