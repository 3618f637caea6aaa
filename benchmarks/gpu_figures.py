"""The plot beside a table of ``gpu.py``."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter


def plot(rows: list[dict[str, str]], path: Path) -> Path:
    """Draws the time per case over the device's limit where all know it, otherwise the time.

    Args:
        rows: Rows of a table; a panel for every direction and dtype.
        path: Where the picture goes.

    Returns:
        The path.
    """

    def distinct(field: str) -> list[str]:
        return list(dict.fromkeys(row[field] for row in rows))

    directions, dtypes, cases = distinct("measured"), distinct("dtype"), distinct("case")
    colors = {name: f"C{i % 10}" for i, name in enumerate(distinct("contender"))}
    size = (4 + 4.5 * len(dtypes), 2 + len(directions) * (1 + 0.5 * len(cases)))
    figure, axes = plt.subplots(
        len(directions), len(dtypes), figsize=size, squeeze=False, sharey=True
    )
    for measured, line in zip(directions, axes, strict=True):
        for dtype, axis in zip(dtypes, line, strict=True):
            some = [r for r in rows if r["measured"] == measured and r["dtype"] == dtype]
            _draw(axis, some, cases, colors)
            axis.set_title(f"{measured}, {dtype}")
    axes[0][0].invert_yaxis()  # of all panels: they share it
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    figure.legend(handles, list(colors), loc="outside lower center", ncols=min(5, len(colors)))
    figure.tight_layout(rect=(0, 0.9 / size[1], 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def scale(axis: Axes, direction: str) -> None:
    """Makes ``x`` or ``y`` logarithmic where the numbers differ much, with plain ones beside it."""
    low, high = getattr(axis.dataLim, f"interval{direction}")
    if high < 10 * low:
        return
    getattr(axis, f"set_{direction}scale")("log")
    ticks = getattr(axis, f"{direction}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter("{x:g}")
    ticks.set_minor_formatter(NullFormatter())


def _draw(axis: Axes, rows: list[dict[str, str]], cases: list[str], colors: dict[str, str]) -> None:
    limited = all(row["floor_microseconds"] for row in rows)
    thickness = 0.8 / len(colors)
    for i, (contender, color) in enumerate(colors.items()):
        mine = [row for row in rows if row["contender"] == contender]
        places = [cases.index(row["case"]) + (i + 0.5) * thickness - 0.4 for row in mine]
        lengths = [
            float(row["microseconds"]) / (float(row["floor_microseconds"]) if limited else 1)
            for row in mine
        ]
        if limited:
            axis.barh(places, lengths, height=thickness, color=color)
        else:  # a logarithmic axis has no zero for a bar to begin at
            axis.plot(lengths, places, "o", color=color)
    axis.set_yticks(range(len(cases)), cases)
    axis.set_xlabel("time / device's limit" if limited else "microseconds")
    axis.set_ylim(-0.5, len(cases) - 0.5)
    if not limited:
        scale(axis, "x")
    axis.grid(axis="x", alpha=0.3)
