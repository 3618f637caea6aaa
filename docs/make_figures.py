"""Draws the figures of the operators' pages into docs/images.

python docs/make_figures.py
"""

from pathlib import Path

import matplotlib
import torch

from dcnv4_mm.ops.dcnv4.layout import kernel_points

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

IMAGES = Path(__file__).resolve().parent / "images"
GRID, POINT, ROW = "0.75", "C3", ("#cfe2f3", "#f9cb9c", "0.9")


def image_grid(axes, rows: int, columns: int) -> None:
    """Draws pixels as squares around their centres; the first centre is (0, 0)."""
    for row in range(rows):
        for column in range(columns):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=GRID, linewidth=0.8))
    axes.set(xlim=(-0.7, columns - 0.3), ylim=(rows - 0.3, -0.7), aspect="equal")
    axes.axis("off")


def dcnv4() -> None:
    """The kernel's grid, the points that offsets move it to, and a row of offset_mask."""
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 4.2), width_ratios=(1, 1.35), layout="constrained"
    )
    image_grid(left, 7, 8)
    generator = torch.Generator().manual_seed(3)
    centre = torch.tensor([3.0, 3.0])
    offsets = 1.6 * torch.rand(9, 2, generator=generator) - 0.6
    for k, (row, column) in enumerate(kernel_points((3, 3))):
        start = centre + torch.tensor([column - 1.0, row - 1.0])
        end = start + offsets[k]
        left.plot(*start, "o", color="0.5", markersize=5, fillstyle="none")
        arrow = {"arrowstyle": "->", "color": "0.5", "shrinkA": 2, "shrinkB": 3}
        left.annotate("", end.tolist(), start.tolist(), arrowprops=arrow)
        left.plot(*end, "o", color=POINT, markersize=6)
        left.annotate(f"{k}", end.tolist(), (5, 4), textcoords="offset points", color=POINT)
    left.plot(*centre, "k+", markersize=12)
    left.set_title("points k of one output pixel (+) and one group", fontsize=10)

    right.axis("off")
    right.set(xlim=(-0.2, 9.4), ylim=(-0.4, 4.2))
    for top, kinds in ((3.2, "group 0"), (1.9, "group 1")):
        cells = ["$x_0$", "$y_0$", "$x_1$", "$y_1$", "...", "$m_0$", "$m_1$", "..."]
        for index, text in enumerate(cells):
            color = ROW[0] if index < 5 else ROW[1]
            right.add_patch(Rectangle((index, top - 0.5), 1, 0.7, facecolor=color, edgecolor="k"))
            right.text(index + 0.5, top - 0.15, text, ha="center", va="center")
        right.text(8.2, top - 0.15, kinds, va="center")
    right.text(4, 1.0, "...", ha="center")
    right.add_patch(Rectangle((0, 0.1), 4, 0.6, facecolor=ROW[2], edgecolor="k"))
    right.text(2, 0.4, "padding, never read", ha="center", va="center")
    right.text(2.5, 3.65, "offsets, 2 K numbers", ha="center", color="#3d6b99")
    right.text(6.5, 3.65, "masks, K numbers", ha="center", color="#b45f06")
    right.set_title("one row of offset_mask: a pixel's G groups one after the other", fontsize=10)
    save(figure, "dcnv4")


def flash_deform_attn() -> None:
    """A query that samples three levels around its reference point."""
    figure, panels = pyplot.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    generator = torch.Generator().manual_seed(5)
    reference = torch.tensor([0.45, 0.55])
    weights = torch.softmax(2 * torch.randn(12, generator=generator), 0).view(3, 4)
    for level, (axes, size) in enumerate(zip(panels, (12, 6, 3), strict=True)):
        image_grid(axes, size, size)
        locations = reference + 0.08 * 1.5**level * torch.randn(4, 2, generator=generator)
        for location, weight in zip(locations, weights[level], strict=True):
            x, y = (location * size - 0.5).tolist()
            axes.scatter(x, y, s=60 + 1500 * float(weight), color=POINT, alpha=0.6, linewidths=0)
        axes.plot(*(reference * size - 0.5), "k+", markersize=12)
        title = f"level {level}, {size} x {size}: weights {weights[level].sum():.2f}"
        axes.set_title(title, fontsize=10)
    save(figure, "flash_deform_attn")


def save(figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.png", dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    dcnv4()
    flash_deform_attn()
