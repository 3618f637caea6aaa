"""Trains small models on generated data through mim, and checks their results.

    python dev/trials.py offsets [dino] [upernet] [bev] ... [--quick] [--record DIR]

Finished steps are not repeated; an interrupted training is resumed. Needs the installed package
with its hosts and openmim. ``make trials`` runs all, ``make trial-dino`` one.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import figures
from mim_driver import ROOT, evaluate, prepare_folder, resolve, run, train, write_data

from dcnv4_mm.cli.configs import find_config, stop

EIGHT = ("--num-train", "8", "--num-val", "2")


@dataclass(frozen=True)
class Trial:
    """A config and the result that it has to reach.

    Args:
        config: Name of a config.
        data: Generator of its dataset, a file of dev/generators.
        sizes: Options of the generator.
        metrics: Printed and plotted metrics: name -> key in the host's log.
        target: Limit for the first metric, see ``compare``.
        minutes: Most minutes that a training may take on two cores.
        baseline: Name of another model that learns from the same data -> its config.
        compare: What has to reach the target: the ``"score"`` itself (at least), its ``"gain"``
            over the baseline's (at least) or its ``"ratio"`` to the baseline's (at most).
        tested_on: Description of the test images.
        quick_sizes: Options of the generator for a run of a few iterations.
        quick: Settings of the config for such a run.
    """

    config: str
    data: str
    metrics: dict[str, str]
    target: float
    minutes: float
    baseline: dict[str, str] = field(default_factory=dict)
    compare: Literal["score", "gain", "ratio"] = "score"
    tested_on: str = "held-out images"
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
    "offsets": Trial(
        config="fcos_flash-internimage-2stage_fpn_1xb8-1500it_barbells",
        data="barbells",
        metrics={"mAP": "coco/bbox_mAP"},
        target=0.03,
        minutes=10,
        baseline={
            "offsets frozen at 0": (
                "fcos_flash-internimage-2stage-frozen-offsets_fpn_1xb8-1500it_barbells"
            )
        },
        compare="gain",
        quick=TWO_STEPS,
    ),
    "dino": Trial(
        config="dino-4scale_flash-internimage-nano_1xb2-9e_mini-coco",
        data="mini_coco",
        sizes=EIGHT,
        metrics={"bbox mAP": "coco/bbox_mAP"},
        target=0.5,
        minutes=20,
        tested_on="its eight training images",
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
        tested_on="its eight training images",
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
        config="bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d",
        data="synthetic_nuscenes",
        sizes=("--train", "1", "--reach", "20", "--size", "240x135"),
        metrics={"mAP": f"{NUSCENES}/mAP", "NDS": f"{NUSCENES}/NDS"},
        target=0.95,
        minutes=60,
        tested_on="its ten training keyframes",
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
        baseline={"one frame": "bevformerv2_r18_fpn_1xb4-12e-t1_motion-nus-3d"},
        compare="ratio",
        tested_on="other scenes",
        quick_sizes=(*MOTION, "--train", "1", "--keyframes", "2"),
        quick=ONE_EPOCH,
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train small models and check their results.")
    parser.add_argument("trials", nargs="+", choices=TRIALS, help="the trials to run")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/trials[-quick]")
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="also write the figures to a folder of each here"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few iterations: a test of all steps",
    )
    args = parser.parse_args()
    if args.work_dir is None:
        args.work_dir = ROOT / "work_dirs" / ("trials-quick" if args.quick else "trials")
    return args


def draw_boxes(config: Path, checkpoint: Path, image: Path, work_dir: Path) -> None:
    """Draws the predictions of a BEVFormerV2 for one keyframe, in all cameras and from above.

    Args:
        config: An installed config.
        checkpoint: The model's weights.
        image: The file to write, unless it exists.
        work_dir: The folder to run in.
    """
    if image.is_file():
        return
    image.parent.mkdir(exist_ok=True)
    tool = str(ROOT / "tools" / "visualization" / "bev_demo.py")
    demo = [sys.executable, tool, str(config), str(checkpoint)]
    run([*demo, "--index", "1", "--out", str(image)], work_dir, work_dir / "demo.log")


def learn(
    trial: Trial, config: Path, folder: Path, work_dir: Path, stamp: Path, options: list[str]
) -> dict[str, float]:
    """Trains and tests one model, and draws its predictions.

    Args:
        trial: The trial that it belongs to.
        config: An installed config.
        folder: The run's work folder; images go to ``folder/images``.
        work_dir: The folder to run in.
        stamp: The stamp of the dataset.
        options: ``KEY=VALUE`` pairs for ``--cfg-options`` of the training.

    Returns:
        The trial's metrics.
    """
    cfg = resolve(config, options)
    prepare_folder(folder, cfg, stamp)
    checkpoint = train(config, folder, work_dir, options)
    images, in_space = folder / "images", cfg.default_scope == "mmdet3d"
    show = () if in_space else ("--show-dir", str(images))
    found = evaluate(config, checkpoint, folder, work_dir, *show)
    if in_space:
        draw_boxes(config, checkpoint, images / "boxes.jpg", work_dir)
    return {metric: found[key] for metric, key in trial.metrics.items()}


def judge(trial: Trial, scores: list[float]) -> tuple[str, bool]:
    """Compares the first metric with the target.

    Args:
        trial: The trial.
        scores: The model's first metric and, if there is a baseline, the baseline's.

    Returns:
        The result beside the target as text, and whether the target was reached.
    """
    value = {
        "score": lambda score: score,
        "gain": lambda score, baseline: score - baseline,
        "ratio": lambda score, baseline: score / baseline,
    }[trial.compare](*scores)
    limit = "at most" if trial.compare == "ratio" else "at least"
    reached = value <= trial.target if trial.compare == "ratio" else value >= trial.target
    metric = next(iter(trial.metrics))
    return f"{trial.compare} of {metric} {value:.4g}, target {limit} {trial.target:g}", reached


def attempt(name: str, work_dir: Path, record: Path | None, *, quick: bool) -> bool:
    """Trains and tests a model and its baseline, and writes figures of the result.

    Args:
        name: A key of ``TRIALS``.
        work_dir: Folder of its dataset, checkpoints and figures.
        record: Folder for copies of the figures.
        quick: Whether to do a few iterations only.

    Returns:
        Whether the target was reached within the time limit.
    """
    trial = TRIALS[name]
    stamp = write_data(trial.data, list(trial.quick_sizes if quick else trial.sizes), work_dir)
    options = list(trial.quick if quick else ())
    curves, lines, scores, longest = {}, [], [], 0.0
    for model, config in {name: trial.config, **trial.baseline}.items():
        folder = work_dir / ("run" if model == name else "baseline")
        results = learn(trial, find_config(config), folder, work_dir, stamp, options)
        lines.append(f"{model}: " + ", ".join(f"{key} {x:.4g}" for key, x in results.items()))
        scores.append(next(iter(results.values())))
        curves[model] = figures.read_curves(folder, trial.metrics)
        longest = max(longest, figures.training_minutes(folder))
    goal, reached = judge(trial, scores)
    summary = (
        f"{'; '.join(lines)} on {trial.tested_on} ({goal}), "
        f"after {longest:.1f} min of training (target {trial.minutes:g})"
    )
    plot = figures.plot_curves(curves, work_dir / "curves.png")
    grid = figures.image_grid(work_dir / "run" / "images", work_dir / "predictions.jpg")
    if record:
        record.mkdir(parents=True, exist_ok=True)
        figures.write_curves(curves, record / "curves.csv")
        for path in (plot, grid):
            shutil.copy(path, record)
        (record / "summary.txt").write_text(f"{summary}\n")
    print(f"{summary}\nloss and results: {plot}\npredictions: {grid}")
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
