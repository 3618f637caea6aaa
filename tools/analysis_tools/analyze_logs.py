"""Plots the logs of training runs: losses, learning rates, metrics.

    python tools/analysis_tools/analyze_logs.py WORK_DIR ... [--keys loss lr] [--out FILE.png]

A work folder may hold several runs if training was resumed; each folder is one legend entry.
"""

import argparse
from pathlib import Path

from dcnv4_mm.cli.configs import stop
from dcnv4_mm.cli.logs import Points, read_logs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Plot training curves.")
    parser.add_argument("work_dirs", type=Path, nargs="+", help="work folders of training runs")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="default: loss and metrics")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="default: curves.png")
    return parser.parse_args()


def plot(logs: dict[str, dict[str, Points]], keys: list[str], path: Path) -> None:
    """Draws one panel for every key, with one curve for every run that has it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    size = (5 * columns, 3.6 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat[len(keys) :]:
        panel.remove()
    for panel, key in zip(axes.flat, keys, strict=False):
        for index, (run, log) in enumerate(logs.items()):
            if key in log:
                steps, values = zip(*sorted(log[key].items()), strict=True)
                mark = "o" if len(steps) < 20 else None
                panel.plot(steps, values, color=f"C{index}", label=run, marker=mark, markersize=4)
        panel.set(title=key, xlabel="iteration")
        panel.grid(alpha=0.3)
        panel.legend()
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        stop(f"cannot write {path}: {error}")
    pyplot.close(figure)


def main() -> None:
    args = parse_args()
    logs = {str(folder): read_logs(folder) for folder in args.work_dirs}
    if empty := [folder for folder, log in logs.items() if not log]:
        stop(f"{empty[0]} holds no */vis_data/scalars.json")
    known = sorted({key for log in logs.values() for key in log})
    # Most metrics are named DATASET/METRIC, as in coco/bbox_mAP; mmseg's are not.
    metrics = [k for k in known if k.endswith(("_mAP", "mIoU", "mAP", "NDS", "accuracy/top1"))]
    keys = args.keys or [key for key in ("loss", *metrics) if key in known]
    if unknown := [key for key in keys if key not in known]:
        stop(f"no {unknown[0]} in the logs; they have {', '.join(known)}")
    plot(logs, keys, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
