"""The plots beside the tables."""

import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from models.networks import METHODS
from report import Row, grouped, megapixels

MARKERS = "os^"


def plot(rows: list[Row], path: Path) -> Path | None:
    """Draws what the table of a benchmark shows best.

    Args:
        rows: Rows of one benchmark, also those without figures.
        path: Where the plot goes.

    Returns:
        The path; ``None`` where there is nothing to draw.
    """
    measured = [row for row in rows if row["milliseconds"]]
    if not measured:
        return None
    benchmark = measured[0]["benchmark"]
    kinds = {"scaling": _scaling, "detectors": _accuracy, "convergence": _curves}
    figure = kinds.get(benchmark, _dots)(measured)
    title = f"{benchmark}: {measured[0]['device']}, torch {measured[0]['torch']}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _distinct(rows: list[Row], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _log_scale(axis: Axes, direction: str) -> None:
    """Makes ``x`` or ``y`` logarithmic where the values differ much, with plain labels."""
    low, high = getattr(axis.dataLim, f"interval{direction}")
    if high < 10 * low:
        return
    getattr(axis, f"set_{direction}scale")("log")
    ticks = getattr(axis, f"{direction}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def _dots(rows: list[Row]) -> plt.Figure:
    """Time of every implementation and case; over the device's limit where all rows have it."""
    panels = grouped(rows, ("measured", "dtype", "threads"))
    cases, names = _distinct(rows, "case"), _distinct(rows, "implementation")
    limited = all(row["floor_microseconds"] for row in rows)
    size = (4 + 4.5 * len(panels), 2 + 0.14 * len(cases) * len(names))
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    for ((measured, dtype, threads), some), axis in zip(panels.items(), axes[0], strict=True):
        for i, name in enumerate(names):
            mine = [row for row in some if row["implementation"] == name]
            heights = [cases.index(r["case"]) + 0.8 * (i + 0.5) / len(names) for r in mine]
            floors = [1e-3 * float(r["floor_microseconds"]) if limited else 1 for r in mine]
            times = [float(r["milliseconds"]) / f for r, f in zip(mine, floors, strict=True)]
            axis.plot(times, heights, MARKERS[i // 10], color=f"C{i % 10}", label=name)
        title = f"{measured}, {dtype}" + (f", {threads} threads" if threads else "")
        label = "time / device's limit" if limited else "milliseconds"
        axis.set(title=title, xlabel=label, ylim=(len(cases), -0.2))
        axis.set_yticks([i + 0.4 for i in range(len(cases))], cases)
        _log_scale(axis, "x")
        axis.grid(axis="x", alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _scaling(rows: list[Row]) -> plt.Figure:
    """Milliseconds by megapixels: single images of several sizes, and batches of one size."""
    panels = grouped(rows, ("dtype",))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1 + 5 * len(panels), 4.5), squeeze=False, layout="constrained"
    )
    for ((dtype,), some), axis in zip(panels.items(), axes[0], strict=True):
        for i, name in enumerate(_distinct(rows, "implementation")):
            for single, marker in ((True, "o-"), (False, "s--")):
                points = sorted(
                    (megapixels(row["case"]), float(row["milliseconds"]))
                    for row in some
                    if row["implementation"] == name and (" 1x" in row["case"]) == single
                )
                label = f"{name}, {'one image' if single else 'a batch'}"
                if points:
                    axis.plot(*zip(*points, strict=True), marker, color=f"C{i}", label=label)
        axis.set(title=dtype, xlabel="megapixels", ylabel="milliseconds")
        _log_scale(axis, "x")
        _log_scale(axis, "y")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


def _accuracy(rows: list[Row]) -> plt.Figure:
    """The paper's accuracy by the measured speed, where the paper has it; otherwise the time."""
    known = [row for row in rows if _accuracy_of(row) is not None]
    if not known:
        return _dots(rows)
    panels = grouped(known, ("dtype",))
    methods = [name for name in METHODS if any(row["case"].startswith(name) for row in known)]
    figure, axes = plt.subplots(
        len(methods),
        len(panels),
        figsize=(1 + 4.5 * len(panels), 4 * len(methods)),
        squeeze=False,
        layout="constrained",
    )
    for method, line in zip(methods, axes, strict=True):
        for ((dtype,), some), axis in zip(panels.items(), line, strict=True):
            mine = [row for row in some if row["case"].startswith(method)]
            for (name,), points in grouped(mine, ("implementation",)).items():
                speeds = [float(row["images_per_second"]) for row in points]
                axis.plot(speeds, [_accuracy_of(row) for row in points], "o-", label=name)
            axis.set(xlabel="images per second, measured", ylabel="accuracy in the paper")
            axis.set_title(f"{method}, {dtype}")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    return figure


def _accuracy_of(row: Row) -> float | None:
    name, size = re.match(r"(.+) ([TSBL]) ", row["case"]).groups()
    return METHODS[name].accuracy.get(f"{row['implementation']}-{size.lower()}")


def _curves(rows: list[Row]) -> plt.Figure:
    """The mean accuracy over the epochs, with a band from the worst to the best seed."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for i, ((name,), some) in enumerate(grouped(rows, ("implementation",)).items()):
        epochs: dict[int, list[float]] = {}
        for row in some:
            epoch = int(row["case"].rpartition(" ")[2])
            epochs.setdefault(epoch, []).append(float(row["accuracy"]))
        means = [statistics.mean(values) for values in epochs.values()]
        lows, highs = ([pick(values) for values in epochs.values()] for pick in (min, max))
        axes.plot(list(epochs), means, color=f"C{i}", label=name)
        axes.fill_between(list(epochs), lows, highs, color=f"C{i}", alpha=0.15)
    axes.set(xlabel="epoch", ylabel="top-1 accuracy on held-out images, percent", ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
