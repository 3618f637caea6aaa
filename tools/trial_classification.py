"""Trains and evaluates a small classifier on generated pictures, through mim.

    python tools/trial_classification.py [--quick] [--record DIR]

What is finished is not done again; an interrupted training goes on. Needs the installed package
with mmpretrain and openmim.
"""

import argparse
import json
import sys
from pathlib import Path

from _running import stop
from quickstart import (
    ROOT,
    check_backbone,
    find_config,
    fingerprint,
    mim,
    prepare_folder,
    run,
    train,
)

NAME = "flash-internimage-nano_1xb32-40e_mini-imagenet"
METRICS = {"top-1": "accuracy/top1", "top-5": "accuracy/top5"}
# In percent, on the held-out pictures.
TARGETS = {"top-1": 80.0}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train and evaluate a small classifier.")
    parser.add_argument("--work-dir", type=Path, help="default: work_dirs/classification[-quick]")
    parser.add_argument("--record", type=Path, metavar="DIR", help="also write the figures here")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one epoch on a few pictures, to see that everything runs; it learns nothing",
    )
    args = parser.parse_args()
    if args.work_dir is None:
        name = "classification-quick" if args.quick else "classification"
        args.work_dir = ROOT / "work_dirs" / name
    return args


def evaluate(config: Path, checkpoint: Path, folder: Path, work_dir: Path) -> dict[str, float]:
    """Tests a checkpoint on the held-out pictures through mim; gives its metrics in percent."""
    command = mim("test", "dcnv4_mm", config.name, "--checkpoint", str(checkpoint))
    run([*command, "--work-dir", str(folder / "test")], work_dir, folder / "test.log")
    metrics = json.loads(max((folder / "test").glob("*/*.json")).read_text())
    return {name: metrics[key] for name, key in METRICS.items()}


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir.resolve()
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"cannot write to {work_dir}: {error.strerror}; give another --work-dir")
    data = work_dir / "data" / "mini_imagenet"
    generate = [sys.executable, str(Path(__file__).parent / "data" / "mini_imagenet.py"), str(data)]
    sizes = ["--num-train", "4", "--num-val", "1"] if args.quick else []
    run([*generate, *sizes], work_dir, work_dir / "data.log")
    config = find_config(NAME)
    check_backbone(config)
    options = ["--cfg-options", "train_cfg.max_epochs=1"] if args.quick else []
    epochs = 1 if args.quick else 40
    folder = work_dir / "trained"
    prepare_folder(folder, fingerprint(config, data / "mini_imagenet.json", options))
    checkpoint = train(config, folder, work_dir, options, epochs)
    values = evaluate(config, checkpoint, folder, work_dir)
    summary = "held-out pictures: " + ", ".join(f"{k} {v:.1f} %" for k, v in values.items())
    print(summary)
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        (args.record / "summary.txt").write_text(f"{summary}\n")
    missed = [name for name, target in TARGETS.items() if values[name] < target]
    if missed and not args.quick:
        stop(f"the trained model missed its target in {', '.join(missed)} ({TARGETS})")


if __name__ == "__main__":
    main()
