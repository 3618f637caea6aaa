"""Lets a small DINO learn eight generated pictures by heart, through mim, and shows the curve.

    python tools/overfit.py [--quick] [--record DIR]

What is finished is not done again; an interrupted training goes on. Needs the installed package
with its hosts and openmim.
"""

import argparse
import shutil
import sys
from pathlib import Path

import _figures
from _running import stop
from quickstart import ROOT, find_config, fingerprint, prepare_folder, run, train

CONFIG = "dino-4scale_flash-internimage-nano_1xb2-9e_mini-coco"
TARGET = 0.5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Overfit a small DINO through mim.")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/overfit[-quick]")
    parser.add_argument("--record", type=Path, metavar="DIR", help="also write the figures here")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few iterations, to see that everything runs; it learns nothing",
    )
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = ROOT / "work_dirs" / ("overfit-quick" if args.quick else "overfit")
    return args


def main() -> None:
    args = parse_args()
    from mmengine.config import Config

    work_dir = args.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    data = work_dir / "data" / "mini_coco"
    generate = [sys.executable, str(Path(__file__).parent / "data" / "mini_coco.py"), str(data)]
    run([*generate, "--num-train", "8", "--num-val", "2"], work_dir, work_dir / "data.log")
    config, folder = find_config(CONFIG), work_dir / "dino"
    epochs, options = Config.fromfile(config).train_cfg.max_epochs, []
    if args.quick:
        epochs = 1
        short = ("max_epochs=1", "val_interval=1")
        options = ["--cfg-options", *(f"train_cfg.{option}" for option in short)]
        options += ["train_dataloader.dataset.times=1"]
    prepare_folder(folder, fingerprint(config, data / "mini_coco.json", options))
    train(config, folder, work_dir, options, epochs)
    curve = _figures.read_curves(folder)
    plot = _figures.plot_curves({"DINO": curve}, work_dir / "curves.png")
    reached = max(value for _, name, value in curve if name == "bbox mAP")
    minutes = _figures.training_minutes(folder)
    summary = f"bbox mAP {reached:.3f} (target {TARGET}) after {minutes:.1f} min of training"
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        _figures.write_curves({"DINO": curve}, args.record / "curves.csv")
        shutil.copy(plot, args.record)
        (args.record / "summary.txt").write_text(f"{summary}\n")
    print(f"{summary}\nloss and mAP: {plot}")
    if reached < TARGET and not args.quick:
        stop(f"DINO missed its target: {summary}")


if __name__ == "__main__":
    main()
