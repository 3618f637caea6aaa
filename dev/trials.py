"""Trains small models on generated data through mim, and checks what they have learned.

    python dev/trials.py dino [upernet] [mask2former] [bev] [motion] [--quick] [--record DIR]
    python dev/trials.py classifier       # where mmpretrain is installed

What is finished is not done again; an interrupted training goes on. Needs the installed package
with its hosts and openmim. ``make trials`` runs all, ``make trial-dino`` one.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import figures
from mim_driver import ROOT, evaluate, prepare_folder, resolve, run, train, write_data

from dcnv4_mm.cli.configs import find_config, stop

EIGHT = ("--num-train", "8", "--num-val", "2")


@dataclass(frozen=True)
class Trial:
    """A config, and what it has to reach.

    Args:
        config: Name of a config.
        data: Generator of its data set, of dev/generators.
        sizes: Options of the generator.
        metrics: What is printed of the result, and plotted -> the host's name of it.
        target: The least that the first of them has to reach; beside a rival, the most that it
            may be of the rival's.
        minutes: What a training may take on two cores.
        rival: Name of another model that learns from the same data -> its config.
        tested_on: The pictures of the test.
        quick_sizes: Options of the generator, and
        quick: settings of the config, for a run of a few iterations.
    """

    config: str
    data: str
    metrics: dict[str, str]
    target: float
    minutes: float
    rival: dict[str, str] = field(default_factory=dict)
    tested_on: str = "held-out pictures"
    sizes: tuple[str, ...] = ()
    quick_sizes: tuple[str, ...] = EIGHT
    quick: tuple[str, ...] = ()


TWO_STEPS = (
    *("train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2"),
    *("default_hooks.checkpoint.interval=2", "default_hooks.logger.interval=1"),
)
NUSCENES = "NuScenes metric/pred_instances_3d_NuScenes"
MOTION = ("--version", "v1.0-trainval", "--size", "160x90", "--objects", "0")
ONE_EPOCH = (
    *("train_cfg.max_epochs=1", "train_cfg.val_interval=1", "default_hooks.logger.interval=1"),
    "default_hooks.checkpoint.interval=1",
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
    "bev": Trial(
        config="bevformerv2_r18_fpn_1xb2-40e-bi3_synthetic-nus-3d",
        data="synthetic_nuscenes",
        sizes=("--train", "1", "--reach", "20", "--size", "240x135"),
        metrics={"mAP": f"{NUSCENES}/mAP", "NDS": f"{NUSCENES}/NDS"},
        target=0.5,
        minutes=60,
        tested_on="the ten keyframes it has learned",
        quick_sizes=("--train", "1", "--keyframes", "2", "--size", "160x90"),
        quick=ONE_EPOCH,
    ),
    "motion": Trial(
        config="bevformerv2_r18_fpn_1xb4-12e-bi3_motion-nus-3d",
        data="synthetic_nuscenes",
        sizes=(
            *(*MOTION, "--reach", "12", "--top-speed", "9"),
            *("--train", "200", "--val", "12", "--keyframes", "4"),
        ),
        metrics={"mAVE": f"{NUSCENES}/mAVE", "mAP": f"{NUSCENES}/mAP"},
        target=0.7,
        minutes=60,
        rival={"one frame": "bevformerv2_r18_fpn_1xb4-12e-t1_motion-nus-3d"},
        tested_on="other scenes",
        quick_sizes=(*MOTION, "--train", "1", "--keyframes", "2"),
        quick=ONE_EPOCH,
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


def paint(config: Path, checkpoint: Path, picture: Path, work_dir: Path) -> None:
    """Draws what a BEVFormerV2 finds in one keyframe, in all cameras and from above.

    Args:
        config: An installed config.
        checkpoint: Of the model.
        picture: What to write, unless it is there.
        work_dir: The folder to run in.
    """
    if picture.is_file():
        return
    picture.parent.mkdir(exist_ok=True)
    demo = [
        sys.executable,
        str(ROOT / "tools" / "visualization" / "bev_demo.py"),
        str(config),
        str(checkpoint),
    ]
    run([*demo, "--index", "1", "--out", str(picture)], work_dir, work_dir / "demo.log")


def learn(
    trial: Trial, config: Path, folder: Path, work_dir: Path, stamp: Path, options: list[str]
) -> dict[str, float]:
    """Trains, tests and paints one model.

    Args:
        trial: What it is for.
        config: An installed config.
        folder: The run's work folder; the pictures go to ``folder/pictures``.
        work_dir: The folder to run in.
        stamp: The stamp of the data set.
        options: ``KEY=VALUE`` pairs for ``--cfg-options`` of the training.

    Returns:
        The trial's metrics.
    """
    cfg = resolve(config, options)
    prepare_folder(folder, cfg, stamp)
    checkpoint = train(config, folder, work_dir, options)
    pictures, in_space = folder / "pictures", cfg.default_scope == "mmdet3d"
    show = () if in_space else ("--show-dir", str(pictures))
    found = evaluate(config, checkpoint, folder, work_dir, *show)
    if in_space:
        paint(config, checkpoint, pictures / "boxes.jpg", work_dir)
    return {metric: found[key] for metric, key in trial.metrics.items()}


def attempt(name: str, work_dir: Path, record: Path | None, *, quick: bool) -> bool:
    """Trains and tests a model, and its rival, and shows what came out.

    Args:
        name: A key of ``TRIALS``.
        work_dir: Folder of its data set, checkpoints and figures.
        record: Folder for copies of the figures.
        quick: Whether to do a few iterations only.

    Returns:
        Whether the target was reached, in the time it has.
    """
    trial = TRIALS[name]
    stamp = write_data(trial.data, list(trial.quick_sizes if quick else trial.sizes), work_dir)
    options = list(trial.quick if quick else ())
    curves, told, scores, longest = {}, [], [], 0.0
    for model, config in {name: trial.config, **trial.rival}.items():
        folder = work_dir / ("run" if model == name else "rival")
        results = learn(trial, find_config(config), folder, work_dir, stamp, options)
        told.append(f"{model}: " + ", ".join(f"{key} {x:.4g}" for key, x in results.items()))
        scores.append(next(iter(results.values())))
        curves[model] = figures.read_curves(folder, trial.metrics)
        longest = max(longest, figures.training_minutes(folder))
    first, score, wanted = next(iter(trial.metrics)), scores[0], "at least"
    if trial.rival:
        first, score, wanted = f"ratio of {first}", scores[0] / scores[1], "at most"
        told.append(f"{first} {score:.4g}")
    summary = (
        f"{'; '.join(told)} on {trial.tested_on} (target {first} {wanted} {trial.target:g}), "
        f"after {longest:.1f} min of training (target {trial.minutes:g})"
    )
    plot = figures.plot_curves(curves, work_dir / "curves.png")
    grid = figures.picture_grid(work_dir / "run" / "pictures", work_dir / "predictions.jpg")
    if record:
        record.mkdir(parents=True, exist_ok=True)
        figures.write_curves(curves, record / "curves.csv")
        for path in (plot, grid):
            shutil.copy(path, record)
        (record / "summary.txt").write_text(f"{summary}\n")
    print(f"{summary}\nloss and results: {plot}\npredictions: {grid}")
    reached = score <= trial.target if trial.rival else score >= trial.target
    return reached and longest <= trial.minutes


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
