"""Writes docs/benchmarks.md from the tables in benchmarks/results, and from nothing else.

    python benchmarks/report.py

Refuses tables that were measured with kernels of no commit, or whose results were wrong.
"""

import argparse
import csv
import os
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, str]

HEAD = """# Benchmarks

Written by `python benchmarks/report.py` from the tables in `benchmarks/results`: do not edit.
`make bench` measures a processor, `make gpu` a GPU; both go on where they were cut short, and write
the tables and plots.

All contenders of a row ran by turns in one process, so that other work slowed all of them alike;
figures are medians over the turns. (2.00x) means: takes twice as long, or as much memory, as the
first column. Where the paper has both figures (NVIDIA A100, its own code), its ratio stands behind,
on a processor too, where batches and pictures are smaller.
Networks have random weights, with offsets spread by two pixels as after training. `n/a` has its
reason below the table; what is not there was not measured.
"""

# Stage -> heading, and what to know.
STAGES = {
    "dcnv4": (
        "The operator DCNv4",
        "One call, against formulations with `grid_sample`. Memory: the peak of a call by the size "
        "of its inputs and outputs.",
    ),
    "gpu-bench": ("The CUDA kernels of DCNv4", "In CUDA graphs, buffers out of the cache."),
    "gpu-peers": ("DCNv4 and what could stand in its place", "In CUDA graphs."),
    "gpu-attention": ("Deformable attention on a GPU", "In CUDA graphs."),
    "flash_deform_attn": ("Deformable attention", "One call, against mmcv's for the CPU."),
    "layers": (
        "Layers with their projections",
        "The paper's operators. DCNv2 mixes all channels at every point, as the 3x3 convolution; "
        "attention has heads of 32 channels.",
    ),
    "ablation": (
        "What the paper left out of DCNv3",
        "Put in again, in the layer and in the whole backbone: a softmax over the masks, a "
        "depthwise convolution, or a branch of depthwise convolution, LayerNorm, GELU and two "
        "linear layers. Packing both results for the kernel is part of the time.",
    ),
    "backbone": (
        "FlashInternImage-T with and without the operator",
        "With `grid_sample` in its place. The operator's share: the part of the time spent in it.",
    ),
    "backbones": (
        "Backbones",
        "The hosts' own classes, or torchvision's where no host is; the forward up to the maps.",
    ),
    "detectors": (
        "Detectors and segmentors",
        "The forward up to a detector's heads, or a segmentor's label map. In a row only the "
        "backbone differs.",
    ),
    "training": (
        "A training step",
        "Losses, gradients and AdamW; memory at its peak, beside the weights and AdamW's state.",
    ),
    "scaling": ("Scaling", "With a fit of time as a constant and a price per megapixel."),
    "processes": (
        "Training in several processes",
        "Steps of DistributedDataParallel, each process with a batch of its own; and alone, the "
        "all-reduce of as many bytes as there are gradients.",
    ),
    "convergence": (
        "How fast networks learn",
        "FlashInternImage-nano on the generated mini ImageNet, with other operators in the place "
        "of DCNv4: top-1 accuracy on held-out pictures, percent, the mean of all seeds and the "
        "worst and the best.",
    ),
}
OURS = ("dcnv4", "ms_deform_attn", "DCNv4", "one linear layer", "FlashInternImage")
IN_IMAGES = ("backbones", "detectors")
# Of a result against float64, relative; those of the operator's tests are tighter.
MOST_WRONG = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def read_tables(folder: Path) -> list[tuple[Path, list[Row]]]:
    """Every table, its rows in one form for all.

    Raises:
        SystemExit: Rows must not be reported.
    """

    tables = []
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="") as file:
            rows = [_in_one_form(row) for row in csv.DictReader(file)]
        for row in rows:
            _check(path, row)
        tables.append((path, rows))
    return tables


def _in_one_form(row: Row) -> Row:
    stage = row.get("stage") or row["benchmark"]
    row = row | {"stage": stage}
    if "microseconds" in row:
        milliseconds = f"{1e-3 * float(row['microseconds']):.4g}"
        row |= {"stage": f"gpu-{stage}", "milliseconds": milliseconds}
    return row


def _check(path: Path, row: Row) -> None:
    what = f"error: {path.name}: {row['case']}, {row['dtype']}, {row['contender']}"
    if row["commit"].endswith("+changes") or row["commit"] == "unknown":
        raise SystemExit(f"{what}: measured with kernels of no commit ({row['commit']})")
    ours = row["contender"].startswith(OURS)
    if ours and row.get("relative_error"):
        error, most = float(row["relative_error"]), MOST_WRONG[row["dtype"]]
        if not error <= most:
            raise SystemExit(f"{what}: wrong by {error:g}, expected at most {most:g}")


def page_of(folder: Path, page: Path) -> str:
    """The page for what is in a folder of results.

    Args:
        folder: Where the CSV files and the plots are.
        page: Where the page will be; for its links.

    Returns:
        Markdown.
    """
    stages: dict[str, dict[str, list[tuple[Path, list[Row]]]]] = {}
    for path, rows in read_tables(folder):
        for stage in dict.fromkeys(row["stage"] for row in rows):
            some = [row for row in rows if row["stage"] == stage]
            devices = stages.setdefault(some[0]["device"], {})
            devices.setdefault(stage, []).append((path, some))
    parts = [HEAD]
    for device, by_stage in stages.items():
        parts.append(f"## {device}\n")
        for stage, (title, text) in STAGES.items():
            for path, rows in by_stage.get(stage, ()):
                parts += [f"### {title}\n", f"{text}\n"]
                parts.append(_section(stage, path, rows, page))
    return "\n".join(parts)


def _section(stage: str, path: Path, rows: list[Row], page: Path) -> str:
    link = f"[{path.name}]({_relative(path, page)})"
    parts = [f"torch {rows[0]['torch']}, commit {rows[0]['commit']}, {rows[0]['date']}: {link}\n"]
    if stage == "convergence":
        parts.append(_accuracies(rows))
    timed_rows = [row for row in rows if stage != "convergence"]
    for key, some in _grouped(timed_rows, ("measured", "dtype", "threads")).items():
        measured, dtype, threads = key
        on = f", {threads} thread{'s' * (threads != '1')}" if threads else ""
        timed = [row for row in some if _figure(row) or row.get("reason")]
        if timed:
            parts.append(f"{measured}, {dtype}{on}:\n")
            parts.append(_table(stage, timed))
            spreads = [float(row["spread_percent"]) for row in timed if row["spread_percent"]]
            if spreads:
                parts.append(f"Quartiles at most {max(spreads):.0f} % of the median apart.\n")
        for row in some:
            if row not in timed:
                parts.append(f"{row['case']}, {measured}, {dtype}{on}: {row['ratio']}.\n")
    if stage == "scaling":
        parts.append(_fits(rows))
    if stage == "processes":
        parts.append(_costs(rows))
    picture = path.with_suffix(".png")
    if picture.exists():
        parts.append(f"![{stage}]({_relative(picture, page)})\n")
    return "\n".join(parts)


def _relative(path: Path, page: Path) -> str:
    return Path(os.path.relpath(path, page.parent)).as_posix()


def _grouped(rows: Iterable[Row], fields: tuple[str, ...]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(field, "") for field in fields), []).append(row)
    return groups


def _table(stage: str, rows: list[Row]) -> str:
    """A line for each case, a column for each contender, ours first."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    names.sort(key=lambda name: OURS.index(name) if name in OURS else len(OURS))
    unit = "images/s" if stage in IN_IMAGES else "ms"
    if not any(row["milliseconds"] for row in rows):
        unit = "MiB"
    lines = [
        f"| {unit} | {' | '.join(names)} |",
        f"| --- |{' ---: |' * len(names)}",
    ]
    reasons: dict[str, None] = {}
    for (case,), some in _grouped(rows, ("case",)).items():
        found = {row["contender"]: row for row in some}
        cells = []
        for name in names:
            row = found.get(name)
            cells.append(_cell(stage, row, found.get(names[0])) if row else "")
            if row and row.get("reason"):
                reasons[f"{name}: {row['reason']}"] = None
        lines.append(f"| {case} | {' | '.join(cells)} |")
    if reasons:
        lines += ["", f"n/a: {'; '.join(reasons)}."]
    return "\n".join([*lines, ""])


def _figure(row: Row) -> str:
    """What is the less, the better."""
    return row["milliseconds"] or row.get("mebibytes", "")


def _cell(stage: str, row: Row, ours: Row | None) -> str:
    if row.get("reason"):
        return "n/a"
    text = row["images_per_second"] if stage in IN_IMAGES else _figure(row)
    if ours is None or row is ours or ours.get("reason"):
        return text
    # If there is one it is the median over the turns, and the better for it.
    ratio = float(row.get("ratio") or float(_figure(row)) / float(_figure(ours)))
    text += f" ({ratio:.2f}x"
    if row.get("paper") and ours.get("paper"):
        paper = float(row["paper"]) / float(ours["paper"])
        # Of layers the paper has times, of networks images per second.
        text += f", paper {1 / paper if stage in IN_IMAGES else paper:.2f}x"
    return text + ")"


def _fits(rows: list[Row]) -> str:
    """Time as a constant and a price per megapixel, by least squares."""
    lines = []
    measured = [row for row in rows if not row.get("reason")]
    for (name, dtype), some in _grouped(measured, ("contender", "dtype")).items():
        sizes = [megapixels(row["case"]) for row in some]
        times = [float(row["milliseconds"]) for row in some]
        if len(set(sizes)) < 3:
            continue
        price, constant = statistics.linear_regression(sizes, times)
        wrong = max(
            abs(constant + price * size - time) / time
            for size, time in zip(sizes, times, strict=True)
        )
        lines.append(
            f"- {name}, {dtype}: {constant:.3g} ms + {price:.3g} ms per megapixel; off by up to "
            f"{100 * wrong:.0f} %."
        )
    return "\n".join([*lines, ""])


def _costs(rows: list[Row]) -> str:
    """Steps of several processes by that of one and the all-reduce."""
    lines = []
    for (name,), some in _grouped(rows, ("contender",)).items():
        steps, reductions = (
            {row["case"]: row for row in some if row["measured"] == measured}
            for measured in ("training step", "all-reduce")
        )
        one = next(iter(steps.values()))
        for case, row in list(steps.items())[1:]:
            speed = float(row["images_per_second"]) / float(one["images_per_second"])
            expected = float(one["milliseconds"]) + float(reductions[case]["milliseconds"])
            lines.append(
                f"- {name}, {case}: {speed:.2f}x the images of one process; a single one's step "
                f"and the all-reduce one after the other would take {expected:.0f} ms."
            )
    return "\n".join([*lines, ""])


def _accuracies(rows: list[Row]) -> str:
    """A line for each contender, with its accuracies after a third, two thirds and all epochs."""
    last = max(int(row["case"].rpartition(" ")[2]) for row in rows)
    epochs = sorted({-(-last // 3), -(-2 * last // 3), last})
    lines = [
        f"| | million parameters | {' | '.join(f'after {epoch} epochs' for epoch in epochs)} |",
        f"| --- | ---: |{' ---: |' * len(epochs)}",
    ]
    for (name,), some in _grouped(rows, ("contender",)).items():
        cells = [some[0]["parameters_millions"]]
        for epoch in epochs:
            found = [float(r["accuracy"]) for r in some if r["case"].endswith(f" epoch {epoch}")]
            cells.append(f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def megapixels(case: str) -> float:
    """Of all pictures of a case such as "T 4x224x224"."""
    batch, rows, columns = map(int, re.findall(r"\d+", case)[-3:])
    return 1e-6 * batch * rows * columns


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write")
    arguments = parser.parse_args()
    text = page_of(arguments.results, arguments.page)
    arguments.page.write_text(text)
    print(f"wrote {arguments.page}")


if __name__ == "__main__":
    main()
