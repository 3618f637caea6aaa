"""Trains small models on generated data through mim, and checks what they have learned.

    python tools/trials.py dino [upernet] [mask2former] [--quick] [--record DIR]
    python tools/trials.py classifier       # where mmpretrain is installed

What is finished is not done again; an interrupted training goes on. Needs the installed package
with its hosts and openmim. ``make trials`` runs all, ``make trial-dino`` one.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import _figures
from _mim import ROOT, evaluate, find_config, prepare_folder, resolve, train, write_data
from _running import stop

EIGHT = ("--num-train", "8", "--num-val", "2")


@dataclass(frozen=True)
class Trial:
    """A config, and what it has to reach.

    Args:
        config: Name of a quickstart config.
        data: Generator of its data set, of tools/data.
        sizes: Options of the generator.
        metrics: What is printed of the result, and plotted -> the host's name of it.
        target: The least that the first of them has to reach.
        minutes: What the training may take on two cores.
        tested_on: The pictures of the test.
        quick_sizes: Options of the generator, and
        quick: settings of the config, for a run of a few iterations.
    """

    config: str
    data: str
    metrics: dict[str, str]
    target: float
    minutes: float
    tested_on: str = "held-out pictures"
    sizes: tuple[str, ...] = ()
    quick_sizes: tuple[str, ...] = EIGHT
    quick: tuple[str, ...] = ()


TWO_STEPS = (
    *("train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2"),
    *("default_hooks.checkpoint.interval=2", "default_hooks.logger.interval=1"),
)
TRIALS = {
    "dino": Trial(
        config="dino-4scale_flash-internimage-nano_1xb2-9e_mini-coco",
        data="mini_coco",
        sizes=EIGHT,
        metrics={"bbox mAP": "coco/bbox_mAP"},
        target=0.5,
        minutes=20,
        tested_on="the eight pictures it has learned",
        quick=("train_cfg.max_epochs=1", "train_dataloader.dataset.times=1"),
    ),
    "upernet": Trial(
        config="upernet_flash-internimage-nano_1xb8-500it_mini-ade20k",
        data="mini_ade20k",
        metrics={"mIoU": "mIoU"},
        target=60,
        minutes=10,
        quick=TWO_STEPS,
    ),
    "mask2former": Trial(
        config="mask2former_flash-internimage-nano_1xb4-300it_mini-ade20k",
        data="mini_ade20k",
        sizes=EIGHT,
        metrics={"mIoU": "mIoU"},
        target=70,
        minutes=20,
        tested_on="the eight pictures it has learned",
        quick=TWO_STEPS,
    ),
    "classifier": Trial(
        config="flash-internimage-nano_1xb32-40e_mini-imagenet",
        data="mini_imagenet",
        metrics={"top-1": "accuracy/top1", "top-5": "accuracy/top5"},
        target=80,
        minutes=10,
        quick_sizes=("--num-train", "4", "--num-val", "1"),
        quick=("train_cfg.max_epochs=1", "train_cfg.val_interval=1"),
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train small models and check their results.")
    parser.add_argument("trials", nargs="+", choices=TRIALS, help="what to try")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/trials[-quick]")
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="also write the figures to a folder of each here"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few iterations, to see that everything runs; it learns nothing",
    )
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = ROOT / "work_dirs" / ("trials-quick" if args.quick else "trials")
    return args


def attempt(name: str, work_dir: Path, record: Path | None, *, quick: bool) -> bool:
    """Trains and tests one model, and shows what came out.

    Args:
        name: A key of ``TRIALS``.
        work_dir: Folder of its data set, checkpoints and figures.
        record: Folder for copies of the figures.
        quick: Whether to do a few iterations only.

    Returns:
        Whether the target was reached, in the time it has.
    """
    trial, folder = TRIALS[name], work_dir / "run"
    stamp = write_data(trial.data, list(trial.quick_sizes if quick else trial.sizes), work_dir)
    config, options = find_config(trial.config), list(trial.quick if quick else ())
    prepare_folder(folder, resolve(config, options), stamp)
    checkpoint = train(config, folder, work_dir, options)
    pictures = ("--show-dir", str(folder / "pictures"))
    found = evaluate(config, checkpoint, folder, work_dir, *pictures)
    results = {metric: found[key] for metric, key in trial.metrics.items()}
    minutes = _figures.training_minutes(folder)
    first = next(iter(results))
    summary = (
        f"{name}: {', '.join(f'{metric} {value:.4g}' for metric, value in results.items())} on "
        f"{trial.tested_on} (target {first} {trial.target:g}), "
        f"after {minutes:.1f} min of training (target {trial.minutes:g})"
    )
    curves = {name: _figures.read_curves(folder, trial.metrics)}
    plot = _figures.plot_curves(curves, work_dir / "curves.png")
    grid = _figures.picture_grid(folder / "pictures", work_dir / "predictions.jpg")
    if record:
        record.mkdir(parents=True, exist_ok=True)
        _figures.write_curves(curves, record / "curves.csv")
        for path in (plot, grid):
            shutil.copy(path, record)
        (record / "summary.txt").write_text(f"{summary}\n")
    print(f"{summary}\nloss and results: {plot}\npredictions: {grid}")
    return results[first] >= trial.target and minutes <= trial.minutes


def main() -> None:
    args = parse_args()
    missed = [
        name
        for name in args.trials
        if not attempt(
            name,
            (args.work_dir / name).resolve(),
            args.record and args.record / name,
            quick=args.quick,
        )
    ]
    if missed and not args.quick:
        stop(f"missed their targets: {', '.join(missed)}")


if __name__ == "__main__":
    main()
