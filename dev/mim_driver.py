"""Training and testing through mim, once each: what quickstart.py and trials.py share."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dcnv4_mm.cli.checks import make_folder
from dcnv4_mm.cli.configs import apply_options, stop

if TYPE_CHECKING:
    from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    # Otherwise idle OpenMP threads spin and slow a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore:pkg_resources is deprecated",
    # mim and mmengine would install what is missing, into any Python.
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PIP_NO_INDEX": "1",
}


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
            if re.search(r"(Epoch|Iter)\(train\)|mAP:|mIoU: |accuracy/top1:", line):
                print("  " + progress(line), flush=True)
    if process.wait() != 0:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
        stop(f"{command[0]} failed; the end of {log}:\n{tail}")
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def progress(line: str) -> str:
    """Extracts progress, loss and metrics from a line of mmengine's log."""
    metrics = r"(?:(?:bbox|segm)_)?mAP(?:_50)?: \S+|mAVE: \S+|mIoU: \S+|accuracy/top\d: \S+"
    wanted = rf"(?:Epoch|Iter)\(\w+\) +\[ *\S+|eta: \S+|(?<=  )loss: \S+|{metrics}"
    return "  ".join(re.findall(wanted, line))


def mim(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mim", *arguments]


def write_data(script: str, arguments: list[str], work_dir: Path) -> Path:
    """Writes a generated dataset where the small configs expect it, unless it exists.

    Args:
        script: A generator of dev/generators, without its suffix; also the name of the dataset.
        arguments: Its options.
        work_dir: The folder that commands will run in.

    Returns:
        The stamp of the dataset, which changes with its content.
    """
    make_folder(work_dir, "--work-dir")
    generator = Path(__file__).parent / "generators" / f"{script}.py"
    data = work_dir / "data" / script
    run([sys.executable, str(generator), str(data), *arguments], work_dir, work_dir / "data.log")
    return data / f"{script}.json"


def resolve(config: Path, options: list[str]) -> "Config":
    """The config with the options applied."""
    from mmengine.config import Config

    cfg = Config.fromfile(config)
    apply_options(cfg, options)
    return cfg


def prepare_folder(folder: Path, cfg: "Config", stamp: Path) -> None:
    """Keeps the folder of an earlier run with the same config and data; empties any other's.

    Args:
        folder: The run's work folder.
        cfg: The resolved config.
        stamp: The stamp of the dataset.
    """
    parts = f"{cfg.pretty_text}\n{stamp.read_text()}"
    mark = hashlib.sha256(parts.encode()).hexdigest()
    settings = folder / "settings.txt"
    if settings.is_file() and settings.read_text() == mark:
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    settings.write_text(mark)


def train(config: Path, folder: Path, work_dir: Path, options: list[str]) -> Path:
    """Trains through mim unless that is done; resumes an interrupted training.

    Args:
        config: An installed config.
        folder: The run's work folder.
        work_dir: The folder to run in.
        options: ``KEY=VALUE`` pairs for ``--cfg-options``.

    Returns:
        The last checkpoint.
    """
    loop = resolve(config, options).train_cfg
    last = f"epoch_{loop.max_epochs}" if "max_epochs" in loop else f"iter_{loop.max_iters}"
    final, pointer = folder / f"{last}.pth", folder / "last_checkpoint"
    if pointer.is_file() and pointer.read_text() == str(final) and final.is_file():
        print(f"  {folder.name}: trained already")
        return final
    if pointer.is_file() and not Path(pointer.read_text()).is_file():
        # Interrupted while the checkpoint was being replaced: nothing to resume from.
        pointer.unlink()
    command = mim("train", "dcnv4_mm", config.name, "--work-dir", str(folder), "--resume")
    command += ["--cfg-options", *options] if options else []
    run(command, work_dir, folder / "train.log")
    return final


def evaluate(config: Path, checkpoint: Path, folder: Path, work_dir: Path, *extra: str) -> dict:
    """Tests a checkpoint through mim unless that is done.

    Args:
        config: An installed config.
        checkpoint: The file to test.
        folder: The run's work folder; the test's output goes to ``folder/test``.
        work_dir: The folder to run in.
        extra: More arguments of ``mim test``.

    Returns:
        The host's metrics under the host's names.
    """
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
    temporary = result.with_suffix(".tmp")
    temporary.write_text(json.dumps(metrics))
    temporary.replace(result)
    return metrics


def check_backbone(config: Path) -> None:
    """Stops unless all stages of the model run DCNv4 on the compiled kernel."""
    import torch
    from mmengine.config import Config

    from dcnv4_mm.backbones import FlashInternImage
    from dcnv4_mm.layers import DCNv4
    from dcnv4_mm.ops.functional import backend_info

    serving = backend_info()["dcnv4"]["cpu"]
    if not serving.startswith("compiled"):
        stop(f"the compiled CPU kernel of dcnv4 is not in use ({serving}): run `make install`")
    settings = Config.fromfile(config).model.backbone
    backbone = FlashInternImage(settings.arch, out_indices=settings.out_indices)
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
