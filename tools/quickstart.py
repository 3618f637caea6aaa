"""Trains and evaluates a small Mask R-CNN on generated pictures, through mim, and shows the result.

    python tools/quickstart.py [--quick] [--record DIR]

It runs ``mim train`` and ``mim test`` for the model as it is and for the same model with all
offsets kept at zero, and ``mim test`` for the untrained model. What is finished is not done again;
an interrupted training goes on. Needs the installed package with its hosts and openmim.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import _figures
from _running import stop

ROOT = Path(__file__).resolve().parents[1]
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
TARGETS = {"bbox mAP": 0.5, "bbox AP50": 0.8, "segm mAP": 0.5, "segm AP50": 0.8}
ENVIRONMENT = {
    # Idle OpenMP threads otherwise spin, and slow a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore:pkg_resources is deprecated",
    # mim and mmengine install what they miss, into any Python: never here.
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PIP_NO_INDEX": "1",
}


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


def run(command: list[str], folder: Path, log: Path) -> None:
    """Runs a command in a folder; its output goes to a log, its progress to the screen."""
    print(f"$ {' '.join(command)}", flush=True)
    started = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in process.stdout:
            file.write(line)
            if re.search(r"(Epoch|Iter)\(train\)|bbox_mAP:|mIoU: |accuracy/top1:", line):
                print("  " + progress(line), flush=True)
    if process.wait() != 0:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
        stop(f"{command[0]} failed; the end of {log}:\n{tail}")
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def progress(line: str) -> str:
    """The telling part of a line of mmengine's log."""
    metrics = r"(?:bbox|segm)_mAP(?:_50)?: \S+|mIoU: \S+|accuracy/top\d: \S+"
    wanted = rf"(?:Epoch|Iter)\(\w+\) +\[\S+|eta: \S+|(?<=  )loss: \S+|{metrics}"
    return "  ".join(re.findall(wanted, line))


def mim(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mim", *arguments]


def check_backbone(config: Path) -> None:
    """Stops unless all four stages of the model run DCNv4 on the compiled kernel."""
    import torch
    from mmengine.config import Config

    from dcnv4_mm.backbones import FlashInternImage
    from dcnv4_mm.layers import DCNv4
    from dcnv4_mm.ops.functional import backend_info

    serving = backend_info()["dcnv4"]["cpu"]
    if not serving.startswith("compiled"):
        stop(f"the compiled CPU kernel of dcnv4 is not in use ({serving}): run `make install`")
    arch = Config.fromfile(config).model.backbone.arch
    backbone = FlashInternImage(arch)
    calls = dict.fromkeys(range(len(backbone.levels)), 0)
    for stage, level in enumerate(backbone.levels):
        for layer in filter(lambda m: isinstance(m, DCNv4), level.modules()):
            layer.register_forward_hook(lambda *_, s=stage: calls.update({s: calls[s] + 1}))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        backbone(torch.zeros(1, 3, 64, 64))
    ran = sum(e.count for e in profile.key_averages() if e.key == "dcnv4_mm::dcnv4_forward")
    if 0 in calls.values() or ran != sum(calls.values()):
        stop(f"DCNv4 ran {ran} times; by stage its layers were called {list(calls.values())} times")
    print(f"DCNv4 ran in all {len(calls)} stages ({ran} layers), kernel: {serving}")


def find_config(name: str) -> Path:
    """The config as installed, which is what mim will use."""
    import dcnv4_mm

    folder = Path(dcnv4_mm.__file__).parent / ".mim" / "configs" / "quickstart"
    path = folder / f"{name}.py"
    if not path.is_file():
        stop(f"{path} does not exist: install the wheel (`make install`); mim needs it")
    return path


def fingerprint(config: Path, stamp: Path, options: list[str]) -> str:
    """Changes when the resolved config, the options or the data set, by its stamp, do."""
    from mmengine.config import Config

    parts = (Config.fromfile(config).pretty_text, stamp.read_text(), *options)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def prepare_folder(folder: Path, mark: str) -> None:
    """Keeps the folder of an earlier run with the same settings, and empties that of any other."""
    stamp = folder / "settings.txt"
    if stamp.is_file() and stamp.read_text() == mark:
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    stamp.write_text(mark)


def train(config: Path, folder: Path, work_dir: Path, options: list[str], epochs: int) -> Path:
    """Trains through mim unless that is done; an interrupted training goes on."""
    final = folder / f"epoch_{epochs}.pth"
    pointer = folder / "last_checkpoint"
    if pointer.is_file() and pointer.read_text() == str(final) and final.is_file():
        print(f"  {folder.name}: trained already")
        return final
    if pointer.is_file() and not Path(pointer.read_text()).is_file():
        # Interrupted while the checkpoint was being replaced: nothing to go on from.
        pointer.unlink()
    command = mim("train", "dcnv4_mm", config.name, "--work-dir", str(folder), "--resume")
    run([*command, *options], work_dir, folder / "train.log")
    return final


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


def evaluate(config: Path, checkpoint: Path, folder: Path, work_dir: Path, *extra: str) -> dict:
    """Tests a checkpoint on the held-out pictures through mim, once; gives its metrics."""
    result = folder / "metrics.json"
    if result.is_file():
        print(f"  {folder.name}: evaluated already")
        return json.loads(result.read_text())
    out = folder / "test"
    shutil.rmtree(out, ignore_errors=True)
    command = mim("test", "dcnv4_mm", config.name, "--checkpoint", str(checkpoint))
    run([*command, "--work-dir", str(out), *extra], work_dir, folder / "test.log")
    (written,) = out.glob("*/*.json")
    metrics = json.loads(written.read_text())
    values = {name: metrics[key] for name, key in METRICS.items()}
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps(values))
    temporary.replace(result)
    return values


def table(rows: dict[str, dict]) -> str:
    lines = [f"{'held-out pictures':<22}" + "".join(f"{name:>11}" for name in METRICS)]
    for row, values in rows.items():
        lines.append(f"{row:<22}" + "".join(f"{values[name]:>11.3f}" for name in METRICS))
    lines.append(f"{'target (trained)':<22}" + "".join(f"{TARGETS[n]:>11.1f}" for n in METRICS))
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir.resolve()
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(f"cannot write to {work_dir}: {error.strerror}; give another --work-dir")
    data = work_dir / "data" / "mini_coco"
    generate = [sys.executable, str(Path(__file__).parent / "data" / "mini_coco.py"), str(data)]
    sizes = ["--num-train", "9", "--num-val", "4"] if args.quick else []
    run([*generate, *sizes], work_dir, work_dir / "data.log")
    configs = {row: find_config(name) for row, name in TRAINED.items()}
    check_backbone(configs["trained"])
    rows, folders = run_all(configs, data, work_dir, quick=args.quick)
    summary = show(rows, {row: folders[row] for row in TRAINED}, work_dir, args.record)
    print(summary)
    missed = [name for name, target in TARGETS.items() if rows["trained"][name] < target]
    if missed and not args.quick:
        stop(f"the trained model missed its target in {', '.join(missed)}")


def run_all(
    configs: dict[str, Path], data: Path, work_dir: Path, *, quick: bool
) -> tuple[dict[str, dict], dict[str, Path]]:
    """Trains and evaluates every row of the table; gives their metrics and folders."""
    from mmengine.config import Config

    epochs = 1 if quick else Config.fromfile(configs["trained"]).train_cfg.max_epochs
    options = ["--cfg-options", "train_cfg.max_epochs=1"] if quick else []
    folders = {row: work_dir / row.replace(" ", "_") for row in (*configs, UNTRAINED)}
    rows: dict[str, dict] = {}
    for row, config in configs.items():
        prepare_folder(folders[row], fingerprint(config, data / "mini_coco.json", options))
        checkpoint = train(config, folders[row], work_dir, options, epochs)
        extra = ("--show-dir", "pictures") if row == "trained" else ()
        rows[row] = evaluate(config, checkpoint, folders[row], work_dir, *extra)
    config = configs["trained"]
    prepare_folder(folders[UNTRAINED], fingerprint(config, data / "mini_coco.json", options))
    checkpoint = initial_checkpoint(config, folders[UNTRAINED])
    rows[UNTRAINED] = evaluate(config, checkpoint, folders[UNTRAINED], work_dir)
    return rows, folders


def show(
    rows: dict[str, dict], folders: dict[str, Path], work_dir: Path, record: Path | None
) -> str:
    """Makes the figures, writes them to ``record`` too if given, and says what came out."""
    curves = {row: _figures.read_curves(folder) for row, folder in folders.items()}
    plot = _figures.plot_curves(curves, work_dir / "curves.png")
    grid = _figures.picture_grid(folders["trained"] / "test", work_dir / "predictions.jpg")
    times = (f"{_figures.training_minutes(f):.1f} min ({row})" for row, f in folders.items())
    summary = f"{table(rows)}\n\ntraining: {', '.join(times)}"
    if record:
        record.mkdir(parents=True, exist_ok=True)
        _figures.write_curves(curves, record / "curves.csv")
        for path in (plot, grid):
            shutil.copy(path, record)
        (record / "summary.txt").write_text(f"{summary}\n")
    return f"\n{summary}\nloss and mAP: {plot}\npredictions (left truth, right found): {grid}"


if __name__ == "__main__":
    main()
