"""Builds and tests this clone in throw-away environments, one per supported combination.

    python dev/matrix.py [--lanes NAME ...] [--steps STEP ...] [--write docs/support.md]

A lane is a Python and a torch. Its environment is made in build/matrix: the wheel is built there
from source, with CUDA kernels where nvcc is found, and the hosts come as wheels by the extra `all`.
Then the tests of operators, layers and backbones run, and models train and test through mim. Needs
the network, the Pythons and g++; nothing of the clone's own environment.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "matrix"
RESULTS = ROOT / "docs" / "support.json"


@dataclass(frozen=True)
class Lane:
    """One combination of versions.

    Attributes:
        python: Version of Python, such as ``"3.10"``.
        torch: Version of torch.
        torchvision: The one that fits it; ``None`` where no wheel does, and no host is tried.
        models: Keys of :data:`MODELS`, which are trained and tested.
        hosts: Requirements of the hosts; by default the extra ``all``.
    """

    python: str
    torch: str
    torchvision: str | None
    models: tuple[str, ...]
    hosts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The first column of its row: Python, and hosts that are not the official ones."""
        return f"{self.python}, onedl's forks" if self.hosts else self.python


# Without downloads, for a few steps.
COCO = ("model.backbone.init_cfg=None", "train_cfg.max_epochs=1", "train_dataloader.batch_size=1")
ADE20K = (
    *("model.backbone.init_cfg=None", "train_cfg.max_iters=2", "train_cfg.val_interval=2"),
    "default_hooks.checkpoint.interval=2",
)
NUSCENES = ("train_cfg.max_epochs=1", "default_hooks.checkpoint.interval=1")
# Boxes of any score, as there would be none otherwise.
RCNN = (*COCO, "model.test_cfg.rcnn.score_thr=0.0")
# Model -> its config and options.
MODELS = {
    "Mask R-CNN": ("mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco", RCNN),
    "DINO": ("dino-4scale_flash-internimage-t_8xb4-12e_coco", COCO),
    "Cascade Mask R-CNN": ("cascade-mask-rcnn_flash-internimage-l_fpn_8xb2-1x_coco", RCNN),
    "UPerNet": ("upernet_flash-internimage-t_8xb2-160k_ade20k-512x512", ADE20K),
    "Mask2Former": ("mask2former_flash-internimage-t_8xb2-160k_ade20k-512x512", ADE20K),
    "BEVFormer v2": ("bevformerv2_r18_fpn_1xb2-120e-bi3_synthetic-nus-3d", NUSCENES),
}
# In this process, with a log line for every step.
PLAIN = [
    f"{phase}_dataloader.{option}"
    for phase in ("train", "val", "test")
    for option in ("num_workers=0", "persistent_workers=False")
] + ["default_hooks.logger.interval=1"]
# Of the official hosts mmcv-lite alone, without its requirement mmengine.
ONEDL = ("onedl-mmengine==0.10.12", "onedl-mmdetection==3.5.1", "onedl-mmsegmentation==1.4.2")
LANES = {
    "oldest": Lane("3.10", "2.10.0", "0.25.0", ("Mask R-CNN", "DINO")),
    # torchvision's wheel for torch's CPU-only build is not on PyPI.
    "cpu": Lane("3.11", "2.13.0+cpu", None, ()),
    "wheels": Lane("3.12", "2.12.1", "0.27.1", tuple(MODELS)),
    "newest": Lane("3.13", "2.14.1", "0.29.1", ("Mask R-CNN", "DINO")),
    "onedl": Lane(
        "3.12", "2.12.1", "0.27.1", ("Mask R-CNN", "DINO", "UPerNet", "Mask2Former"), ONEDL
    ),
}
TESTS = ("tests/ops", "tests/layers", "tests/backbones")
# What computes for other devices and instruction sets, and compiles, does not depend on torch.
SAME = ("on_host", "compile_gate")
# Need hosts, which come after the tests.
IGNORED = ("tests/ops/test_flop_handles.py", "tests/ops/test_onnx.py")
SELECTION = ("-k", " and ".join(f"not {name}" for name in SAME), "-m", "not slow and not export")


def find_python(version: str) -> str:
    """Path of a working interpreter of this version; stops if there is none."""
    on_path = shutil.which(f"python{version}")
    others = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in filter(None, (on_path, *map(str, others))):
        command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.stdout.strip() == version:
            return candidate
    sys.exit(f"error: Python {version} is not installed: install it, or leave its lane out")


class Environment:
    """The throw-away environment of a lane, with a copy of the clone's tracked files in it."""

    def __init__(self, name: str) -> None:
        self.lane, self.folder = LANES[name], BUILD / name
        self.source, self.log = self.folder / "source", self.folder / "log.txt"
        self.python = self.folder / "bin" / "python"
        self.has_nvcc = bool(shutil.which("nvcc", path=f"{os.environ['PATH']}:/usr/local/cuda/bin"))
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DCNV4_MM_"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        settings = dict(PATH=path, PIP_REQUIRE_VIRTUALENV="1", OMP_WAIT_POLICY="PASSIVE")
        self.variables = {**outer, **settings}

    def run(self, *command: str | Path, cwd: Path | None = None, **variables: str) -> str:
        """Runs a command; its output goes to the lane's log and is returned."""
        words = [str(word) for word in command]
        result = subprocess.run(
            words,
            cwd=cwd or self.folder,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n{result.stdout}\n")
        if result.returncode:
            end = "\n".join(result.stdout.splitlines()[-25:])
            sys.exit(f"error: {' '.join(words[:8])} failed; the end of {self.log}:\n{end}")
        return result.stdout

    def pip(self, *arguments: str | Path) -> None:
        self.run(self.python, "-m", "pip", "install", "--quiet", *arguments)

    def make(self) -> str:
        """Makes the environment with torch; returns what torch was built for."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.run(find_python(self.lane.python), "-m", "venv", self.folder)
        self.pip("--requirement", ROOT / "requirements" / "build.txt")
        vision = f"torchvision=={self.lane.torchvision}" if self.lane.torchvision else "numpy"
        self.pip(f"torch=={self.lane.torch}", vision, "pytest>=8", "hypothesis")
        return self.run(
            *(self.python, "-c"), "import torch; print('CUDA', torch.version.cuda or 'none')"
        ).strip()

    def build(self) -> str:
        """Builds the wheel from the tracked files, and installs it."""
        files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
        for name in filter(None, files):
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.source / name)
        variables = {"DCNV4_MM_REQUIRE_EXT": "1"}
        if self.has_nvcc:
            variables |= {"DCNV4_MM_REQUIRE_CUDA": "1", "DCNV4_MM_CUDA_ARCHS": "90"}
        flags = (
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            self.folder / "wheel",
        )
        self.run(self.python, "-m", "pip", "wheel", *flags, self.source, **variables)
        self.pip(self.wheel())
        return "CPU and CUDA kernels" if self.has_nvcc else "CPU kernels"

    def wheel(self) -> str:
        """Path of the wheel that was built."""
        (wheel,) = (self.folder / "wheel").glob("*.whl")
        return str(wheel)

    def test(self) -> str:
        """Runs the tests of operators, layers and backbones with the installed wheel."""
        options = ("-c", self.source / "pyproject.toml", "-q", "-p", "no:cacheprovider")
        ignored = [f"--ignore={self.source / path}" for path in IGNORED]
        paths = [*ignored, *(self.source / path for path in TESTS)]
        output = self.run(self.folder / "bin" / "pytest", *options, *SELECTION, *paths)
        return re.findall(r"(\d+ passed)", output)[-1]

    def install_hosts(self) -> None:
        """The newest releases that the metadata allows, or the lane's own."""
        if self.lane.hosts:
            self.pip("--no-deps", "mmcv-lite==2.1.0")
            self.pip("--no-build-isolation", *self.lane.hosts)
        else:
            self.pip("--only-binary", ":all:", f"{self.wheel()}[all]")

    def program(self, task: str, config: str) -> list[str | Path]:
        """The command that trains or tests: mim's, or our script under forks, which have no mim."""
        if not self.lane.hosts:
            return ["-m", "mim", task, "dcnv4_mm", f"{config}.py", "--gpus", "0"]
        (path,) = self.source.glob(f"configs/*/{config}.py")
        return [self.source / "tools" / f"{task}.py", path]

    def train(self, model: str) -> str:
        """Trains a model for a few steps, and tests the checkpoint."""
        config, options = MODELS[model]
        sets = self.folder / "sets"
        if not sets.exists():
            self.install_hosts()
            self.run(self.python, self.source / "dev" / "tiny_sets.py", sets)
        work, options = sets / config, ["--cfg-options", *PLAIN, *options]
        train = (*self.program("train", config), "--work-dir", work)
        output = self.run(self.python, *train, *options, cwd=sets)
        losses = [float(loss) for loss in re.findall(r" loss: (\S+)", output)]
        if not losses or not all(0 < loss < 1e4 for loss in losses):
            sys.exit(f"error: {config} has the losses {losses}; see {self.log}")
        checkpoint = (work / "last_checkpoint").read_text()
        flag = () if self.lane.hosts else ("--checkpoint",)
        test = (*self.program("test", config), *flag, checkpoint, "--work-dir", work)
        output = self.run(self.python, *test, *options, cwd=sets)
        if not re.search(r"bbox_mAP: |mIoU: |NDS: ", output):
            sys.exit(f"error: {config} has no scores; see {self.log}")
        return "trains, tests"


def run_lane(name: str, steps: list[str]) -> dict[str, str]:
    """Runs the given steps of a lane, or all, and returns the cells of its row."""
    environment = Environment(name)
    functions = {"torch": environment.make, "build": environment.build, "tests": environment.test}
    for model in environment.lane.models:
        functions[model] = lambda model=model: environment.train(model)
    cells = {}
    for step, function in functions.items():
        if not steps or step in steps:
            started = time.monotonic()
            cells[step] = function()
            seconds = time.monotonic() - started
            print(f"  {name}: {step}: {cells[step]} ({seconds:.0f} s)", flush=True)
    return cells


def page(results: dict[str, dict[str, str]]) -> str:
    """The page of documentation that shows the results."""
    columns = ("build", "tests", *MODELS, "date", "commit")
    lines = [
        "<!-- Auto-generated by dev/matrix.py. Do not edit. -->",
        "# Support matrix",
        "",
        "Each row is an environment that `make matrix` makes from wheels: this package is built",
        "from source, the tests of operators, layers and backbones run, and models train and test",
        "through mim for a few steps on random data, on the CPU of a Linux x86-64 machine. A dash",
        "means not tested. `make test` tests everything, with the versions of",
        "[requirements/main.txt](../requirements/main.txt).",
        "",
        f"| Python | torch | {' | '.join(columns)} |",
        f"| --- | --- | {' | '.join('---' for _ in columns)} |",
    ]
    for name, lane in LANES.items():
        cells = results.get(name, {})
        torch = f"{lane.torch}, {cells['torch']}" if "torch" in cells else lane.torch
        row = (lane.title, torch, *(cells.get(column, "—") for column in columns))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES))
    steps = ["torch", "build", "tests", *MODELS]
    parser.add_argument("--steps", nargs="+", choices=steps, default=[], help="only these")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="add the results to this page")
    args = parser.parse_args()
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT)
    failed = []
    for name in args.lanes:
        print(f"{name}: Python {LANES[name].python}, torch {LANES[name].torch}", flush=True)
        try:
            cells = run_lane(name, args.steps)
        except SystemExit as error:
            print(error, file=sys.stderr)
            failed.append(name)
            continue
        if args.write:
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            stamp = dict(date=date.today().isoformat(), commit=commit.decode().strip())
            results[name] = results.get(name, {}) | cells | stamp
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            args.write.write_text(page(results))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
