"""Trains and evaluates a small Mask R-CNN on generated pictures, through mim, and shows the result.

    python dev/quickstart.py [--quick] [--record DIR]

It runs ``mim train`` and ``mim test`` for the model as it is and for the same model with all
offsets kept at zero, and ``mim test`` for the untrained model. What is finished is not done again;
an interrupted training goes on. Needs the installed package with its hosts and openmim.
"""

import argparse
import shutil
from pathlib import Path

import figures
from mim_driver import (
    ROOT,
    check_backbone,
    evaluate,
    prepare_folder,
    resolve,
    train,
    write_data,
)

from dcnv4_mm.cli.configs import find_config, stop

NANO = "mask-rcnn_flash-internimage-nano_fpn_1xb4-12e_mini-coco"
FROZEN = "mask-rcnn_flash-internimage-nano-frozen-offsets_fpn_1xb4-12e_mini-coco"
# Row of the table -> config.
TRAINED = {"trained": NANO, "offsets frozen at 0": FROZEN}
UNTRAINED = "untrained"
METRICS = {
    "bbox mAP": "coco/bbox_mAP",
    "bbox AP50": "coco/bbox_mAP_50",
    "segm mAP": "coco/segm_mAP",
    "segm AP50": "coco/segm_mAP_50",
}
# Of these there are curves.
CURVES = {name: key for name, key in METRICS.items() if name.endswith("mAP")}
TARGETS = {"bbox mAP": 0.5, "bbox AP50": 0.8, "segm mAP": 0.5, "segm AP50": 0.8}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and evaluate a small model through mim.")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/quickstart[-quick]")
    parser.add_argument("--record", type=Path, metavar="DIR", help="also write the figures here")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one epoch on a few pictures, to see that everything runs; it learns nothing",
    )
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = ROOT / "work_dirs" / ("quickstart-quick" if args.quick else "quickstart")
    return args


def initial_checkpoint(config: Path, folder: Path) -> Path:
    """Writes the weights that a training of this config starts from."""
    import torch
    from mmengine.config import Config
    from mmengine.logging import MMLogger
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import save_checkpoint

    path = folder / "untrained.pth"
    if not path.is_file():
        # It would list how every parameter is initialised.
        MMLogger.get_instance("quickstart", log_level="ERROR")
        cfg = Config.fromfile(config)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(cfg.randomness.seed)
        model = MODELS.build(cfg.model)
        model.init_weights()
        save_checkpoint({"meta": {}, "state_dict": model.state_dict()}, str(path))
    return path


def table(rows: dict[str, dict]) -> str:
    lines = [f"{'held-out pictures':<22}" + "".join(f"{name:>11}" for name in METRICS)]
    for row, values in rows.items():
        lines.append(f"{row:<22}" + "".join(f"{values[name]:>11.3f}" for name in METRICS))
    lines.append(f"{'target (trained)':<22}" + "".join(f"{TARGETS[n]:>11.1f}" for n in METRICS))
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir.resolve()
    sizes = ["--num-train", "9", "--num-val", "4"] if args.quick else []
    stamp = write_data("mini_coco", sizes, work_dir)
    configs = {row: find_config(name) for row, name in TRAINED.items()}
    check_backbone(configs["trained"])
    rows, folders = run_all(configs, stamp, work_dir, quick=args.quick)
    summary = show(rows, {row: folders[row] for row in TRAINED}, work_dir, args.record)
    print(summary)
    missed = [name for name, target in TARGETS.items() if rows["trained"][name] < target]
    if missed and not args.quick:
        stop(f"the trained model missed its target in {', '.join(missed)}")


def run_all(
    configs: dict[str, Path], stamp: Path, work_dir: Path, *, quick: bool
) -> tuple[dict[str, dict], dict[str, Path]]:
    """Trains and evaluates every row of the table; gives their metrics and folders."""
    options = ["train_cfg.max_epochs=1"] if quick else []
    folders = {row: work_dir / row.replace(" ", "_") for row in (*configs, UNTRAINED)}
    rows: dict[str, dict] = {}
    for row, config in configs.items():
        prepare_folder(folders[row], resolve(config, options), stamp)
        checkpoint = train(config, folders[row], work_dir, options)
        # A relative folder is the host's affair.
        extra = ("--show-dir", str(folders[row] / "pictures")) if row == "trained" else ()
        rows[row] = evaluate(config, checkpoint, folders[row], work_dir, *extra)
    config = configs["trained"]
    prepare_folder(folders[UNTRAINED], resolve(config, options), stamp)
    checkpoint = initial_checkpoint(config, folders[UNTRAINED])
    rows[UNTRAINED] = evaluate(config, checkpoint, folders[UNTRAINED], work_dir)
    rows = {row: {n: metrics[key] for n, key in METRICS.items()} for row, metrics in rows.items()}
    return rows, folders


def show(
    rows: dict[str, dict], folders: dict[str, Path], work_dir: Path, record: Path | None
) -> str:
    """Makes the figures, writes them to ``record`` too if given, and says what came out."""
    curves = {row: figures.read_curves(folder, CURVES) for row, folder in folders.items()}
    plot = figures.plot_curves(curves, work_dir / "curves.png")
    grid = figures.picture_grid(folders["trained"] / "pictures", work_dir / "predictions.jpg")
    times = (f"{figures.training_minutes(f):.1f} min ({row})" for row, f in folders.items())
    summary = f"{table(rows)}\n\ntraining: {', '.join(times)}"
    if record:
        record.mkdir(parents=True, exist_ok=True)
        figures.write_curves(curves, record / "curves.csv")
        for path in (plot, grid):
            shutil.copy(path, record)
        (record / "summary.txt").write_text(f"{summary}\n")
    return f"\n{summary}\nloss and mAP: {plot}\npredictions (left truth, right found): {grid}"


if __name__ == "__main__":
    main()
