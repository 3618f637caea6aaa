"""The plot beside a table of ``models.py``."""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from gpu_figures import scale
from matplotlib.axes import Axes
from networks import METHODS
from report import megapixels

MARKERS = "os^"
Rows = list[dict[str, str]]


def plot(rows: Rows, path: Path) -> Path:
    """Draws what the table of a stage shows best.

    Args:
        rows: Of one stage, those without figures among them.
        path: Where the picture goes.

    Returns:
        The path.
    """
    measured = [row for row in rows if row["milliseconds"]]
    stage = measured[0]["stage"]
    figure = {"scaling": _scaling, "detectors": _accuracy}.get(stage, _dots)(measured)
    figure.suptitle(f"{stage}: {measured[0]['device']}, torch {measured[0]['torch']}", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _distinct(rows: Rows, field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _panels(rows: Rows, *fields: str) -> dict[tuple[str, ...], Rows]:
    """Rows by what they have in these fields."""
    panels: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        panels.setdefault(tuple(row[field] for field in fields), []).append(row)
    return panels


def _dots(rows: Rows) -> plt.Figure:
    """Milliseconds of every contender and case."""
    panels = _panels(rows, "measured", "dtype")
    cases, contenders = _distinct(rows, "case"), _distinct(rows, "contender")
    size = (4 + 4.5 * len(panels), 2 + 0.14 * len(cases) * len(contenders))
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, squeeze=False, sharey=True, layout="constrained"
    )
    for (title, some), axis in zip(panels.items(), axes[0], strict=True):
        for i, contender in enumerate(contenders):
            mine = [row for row in some if row["contender"] == contender]
            places = [cases.index(r["case"]) + 0.8 * (i + 0.5) / len(contenders) for r in mine]
            lengths = [float(row["milliseconds"]) for row in mine]
            axis.plot(lengths, places, MARKERS[i // 10], color=f"C{i % 10}", label=contender)
        axis.set(title=", ".join(title), xlabel="milliseconds", ylim=(len(cases), -0.2))
        axis.set_yticks([i + 0.4 for i in range(len(cases))], cases)
        scale(axis, "x")
        axis.grid(axis="x", alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _scaling(rows: Rows) -> plt.Figure:
    """Milliseconds by megapixels; pictures of one size in batches, and single ones of many."""
    panels = _panels(rows, "dtype")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1 + 5 * len(panels), 4.5), squeeze=False, layout="constrained"
    )
    for ((dtype,), some), axis in zip(panels.items(), axes[0], strict=True):
        for i, contender in enumerate(_distinct(rows, "contender")):
            for single, marker in ((True, "o-"), (False, "s--")):
                points = sorted(
                    (megapixels(row["case"]), float(row["milliseconds"]))
                    for row in some
                    if row["contender"] == contender and (" 1x" in row["case"]) == single
                )
                label = f"{contender}, {'one picture' if single else 'a batch'}"
                if points:
                    axis.plot(*zip(*points, strict=True), marker, color=f"C{i}", label=label)
        axis.set(title=dtype, xlabel="megapixels", ylabel="milliseconds")
        scale(axis, "x")
        scale(axis, "y")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


def _accuracy(rows: Rows) -> plt.Figure:
    """The paper's accuracy by the speed that was measured, where it states one; else the speed."""
    known = [row for row in rows if _accuracy_of(row) is not None]
    if not known:
        return _dots(rows)
    panels = _panels(known, "dtype")
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
            _draw_accuracy(axis, [row for row in some if row["case"].startswith(method)])
            axis.set_title(f"{method}, {dtype}")
    return figure


def _draw_accuracy(axis: Axes, rows: Rows) -> None:
    for contender in _distinct(rows, "contender"):
        mine = [row for row in rows if row["contender"] == contender]
        points = [(float(row["images_per_second"]), _accuracy_of(row)) for row in mine]
        axis.plot(*zip(*points, strict=True), "o-", label=contender)
    axis.set(xlabel="images per second, measured", ylabel="accuracy, the paper's at its scale")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _accuracy_of(row: dict[str, str]) -> float | None:
    name, size = re.match(r"(.+) ([TSBL]) ", row["case"]).groups()
    return METHODS[name].accuracy.get(f"{row['contender']}-{size.lower()}")
