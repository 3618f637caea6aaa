"""Plots of training curves, and grids of images: what quickstart.py and trials.py write."""

import csv
import json
from pathlib import Path

from dcnv4_mm.cli.logs import read_logs

# Points of a curve: step (iterations), name, value.
Curve = list[tuple[int, str, float]]


def read_curves(folder: Path, metrics: dict[str, str]) -> Curve:
    """Training losses and some results of a work folder, by iteration.

    Args:
        folder: A work folder.
        metrics: Name of a result -> its key in mmengine's log.
    """
    logs = read_logs(folder)
    return sorted(
        (step, name, value)
        for name, key in {"loss": "loss", **metrics}.items()
        for step, value in logs.get(key, {}).items()
    )


def training_minutes(folder: Path) -> float:
    """Time spent in training iterations, without validation, by mmengine's log."""
    total, last = 0.0, 0
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for record in map(json.loads, path.read_text().splitlines()):
            if "loss" in record and record["step"] > last:
                total += record["time"] * (record["step"] - last)
                last = record["step"]
    return total / 60


def plot_curves(curves: dict[str, Curve], path: Path) -> Path:
    """Draws loss and results over the iterations, one color for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    metrics = {name: None for curve in curves.values() for _, name, _ in curve if name != "loss"}
    styles = {
        "loss": (left, "-"),
        **{name: (right, style) for name, style in zip(metrics, ("-", "--", ":"), strict=False)},
    }
    for color, (row, curve) in zip(("C0", "C1", "C2"), curves.items(), strict=False):
        for name, (axes, style) in styles.items():
            points = [(step, value) for step, kind, value in curve if kind == name]
            if not points:
                continue
            label = row if name == "loss" else f"{name}, {row}"
            axes.plot(*zip(*points, strict=True), style, color=color, label=label)
    for axes, title in ((left, "training loss"), (right, ", ".join(metrics))):
        axes.set(title=title, xlabel="iteration")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def write_curves(curves: dict[str, Curve], path: Path) -> None:
    """Writes the points of all curves to a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", "iteration", "name", "value"))
        for row, curve in curves.items():
            writer.writerows((row, step, name, f"{value:.4f}") for step, name, value in curve)


def image_grid(folder: Path, path: Path, *, count: int = 12, columns: int = 3) -> Path:
    """Arranges images from all over a folder in a grid."""
    import cv2
    import numpy as np

    files = sorted(p for p in folder.rglob("*") if p.suffix in {".jpg", ".png"})
    files = files[:: max(1, len(files) // count)][:count]
    if not files:
        raise FileNotFoundError(f"no images below {folder}")
    images = [cv2.imread(str(p)) for p in files]
    columns = min(columns, len(images))
    height, width = (max(p.shape[axis] for p in images) + 8 for axis in (0, 1))
    rows = -(-len(images) // columns)
    grid = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    cv2.imwrite(str(path), grid, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return path
