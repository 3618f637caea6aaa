"""Trains small models on generated pictures through mim, and checks what they have learned.

    python tools/trials.py [upernet] [mask2former] [--record DIR]

Needs the installed package with its hosts and openmim. A trial that is finished is not done again;
an interrupted one goes on.
"""

import argparse
import csv
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _running import stop
from quickstart import ROOT, find_config, mim, run


@dataclass(frozen=True)
class Trial:
    """A config, and what it has to reach.

    Args:
        config: Name of a quickstart config.
        data: Script that writes its data set; also the name of the set.
        pictures: Folder of the set whose pictures are painted.
        metric: Key of the result.
        target: The least result, as the host reports it.
        minutes: What the training may take on two cores.
    """

    config: str
    data: str
    pictures: str
    metric: str
    target: float
    minutes: float


TRIALS = {
    "upernet": Trial(
        config="upernet_flash-internimage-nano_1xb8-800it_mini-ade20k",
        data="mini_ade20k",
        pictures="images/validation",
        metric="mIoU",
        target=60,
        minutes=10,
    ),
    # Tested on the eight pictures that it has learned.
    "mask2former": Trial(
        config="mask2former_flash-internimage-nano_1xb4-300it_mini-ade20k",
        data="mini_ade20k",
        pictures="images/training",
        metric="mIoU",
        target=70,
        minutes=20,
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train small models and check their results.")
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"of {', '.join(TRIALS)}; all")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs" / "trials")
    parser.add_argument("--record", type=Path, metavar="DIR", help="also write the figures here")
    args = parser.parse_args()
    if unknown := set(args.trials) - set(TRIALS):
        parser.error(f"there is no trial {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    return args


def train(trial: Trial, config: Path, folder: Path, work_dir: Path) -> Path:
    """Trains through mim unless that is done; gives the last checkpoint."""
    from mmengine.config import Config

    last = folder / f"iter_{Config.fromfile(config).train_cfg.max_iters}.pth"
    if not last.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = mim("train", "dcnv4_mm", config.name, "--work-dir", str(folder), "--resume")
        started = time.monotonic()
        run(command, work_dir, folder / "train.log")
        with (folder / "seconds.txt").open("a") as file:
            print(round(time.monotonic() - started), file=file)
    return last


def evaluate(trial: Trial, config: Path, checkpoint: Path, work_dir: Path) -> float:
    """Tests through mim and paints the pictures; gives the result."""
    folder = checkpoint.parent
    shutil.rmtree(folder / "test", ignore_errors=True)
    command = mim("test", "dcnv4_mm", config.name, "--checkpoint", str(checkpoint))
    run([*command, "--work-dir", str(folder / "test")], work_dir, folder / "test.log")
    (written,) = (folder / "test").glob("*/*.json")
    demo = [sys.executable, str(Path(__file__).with_name("demo.py"))]
    pictures = work_dir / "data" / trial.data / trial.pictures
    options = ["--out-dir", str(folder / "demo")]
    run(
        [*demo, str(pictures), str(config), str(checkpoint), *options],
        work_dir,
        folder / "demo.log",
    )
    return json.loads(written.read_text())[trial.metric]


def curve(trial: Trial, folder: Path) -> list[tuple[int, str, float]]:
    """Training losses and results by iteration, from mmengine's logs."""
    points = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for record in map(json.loads, path.read_text().splitlines()):
            for name in ("loss", trial.metric):
                if name in record:
                    points[record["step"], name] = record[name]
    return [(step, name, value) for (step, name), value in sorted(points.items())]


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir.resolve()
    (work_dir / "data").mkdir(parents=True, exist_ok=True)
    missed = []
    for name in args.trials or TRIALS:
        trial, folder = TRIALS[name], work_dir / name
        script = Path(__file__).parent / "data" / f"{trial.data}.py"
        data = work_dir / "data" / trial.data
        run([sys.executable, str(script), str(data)], work_dir, work_dir / "data.log")
        config = find_config(trial.config)
        checkpoint = train(trial, config, folder, work_dir)
        result = evaluate(trial, config, checkpoint, work_dir)
        minutes = sum(map(int, (folder / "seconds.txt").read_text().split())) / 60
        summary = (
            f"{name}: {trial.metric} {result:.1f} (target {trial.target:g}), "
            f"trained in {minutes:.1f} min (target {trial.minutes:g})"
        )
        print(f"{summary}\npictures: {folder / 'demo' / 'vis'}")
        if args.record:
            args.record.mkdir(parents=True, exist_ok=True)
            with (args.record / f"{name}.csv").open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(("iteration", "name", "value"))
                writer.writerows((s, n, f"{v:.4f}") for s, n, v in curve(trial, folder))
            (args.record / f"{name}.txt").write_text(f"{summary}\n")
        if result < trial.target or minutes > trial.minutes:
            missed.append(name)
    if missed:
        stop(f"missed their targets: {', '.join(missed)}")


if __name__ == "__main__":
    main()
