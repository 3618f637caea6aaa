"""Builds and tests this clone in throw-away environments, one for each supported combination.

    python dev/matrix.py [--lanes NAME ...] [--only STEP ...] [--write docs/support.md]

A lane is a Python and a torch: its environment is made in build/matrix, the wheel is built there from
source with its CUDA kernels, the hosts come from wheels through the extra `all`, and then the tests
of operators, layers and backbones and short trainings through mim run. Needs the network, the
Pythons, g++ and, for the CUDA kernels, nvcc; nothing of the clone's own environment.
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
        torchvision: The one that fits it, or ``None`` where no wheel fits: then no host is tried.
        models: Which of :data:`MODELS` are trained.
    """

    python: str
    torch: str
    torchvision: str | None
    models: tuple[str, ...]


# Model -> (config, options). Without downloads, and on the processor.
COCO = ["model.backbone.init_cfg=None", "train_cfg.max_epochs=1", "train_dataloader.batch_size=1"]
ADE20K = [
    "model.backbone.init_cfg=None",
    "train_cfg.max_iters=2",
    "train_cfg.val_interval=2",
    "default_hooks.checkpoint.interval=2",
]
MODELS = {
    "Mask R-CNN": ("mask-rcnn_flash-internimage-t_fpn_8xb2-1x_coco", COCO),
    "DINO": ("dino-4scale_flash-internimage-t_8xb4-12e_coco", COCO),
    "Cascade Mask R-CNN": ("cascade-mask-rcnn_flash-internimage-l_fpn_8xb2-1x_coco", COCO),
    "UPerNet": ("upernet_flash-internimage-t_8xb2-160k_ade20k-512x512", ADE20K),
    "Mask2Former": ("mask2former_flash-internimage-t_8xb2-160k_ade20k-512x512", ADE20K),
    "BEVFormer v2": ("bevformerv2_r18_fpn_1xb2-40e-bi3_synthetic-nus-3d", ["train_cfg.max_epochs=1"]),
}
WORKERS = [
    f"{phase}_dataloader.{option}"
    for phase in ("train", "val", "test")
    for option in ("num_workers=0", "persistent_workers=False")
]
LANES = {
    "oldest": Lane("3.10", "2.10.0", "0.25.0", ("Mask R-CNN", "DINO")),
    "cpu": Lane("3.11", "2.13.0+cpu", None, ()),
    "wheels": Lane("3.12", "2.12.1", "0.27.1", tuple(MODELS)),
    "newest": Lane("3.13", "2.14.1", "0.29.1", ("Mask R-CNN", "DINO")),
}
TESTS = ("tests/ops", "tests/layers", "tests/backbones")


def find_python(version: str) -> str:
    """Path of a working interpreter of this version; stops if there is none."""
    on_path = shutil.which(f"python{version}")
    others = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in filter(None, (on_path, *map(str, others))):
        command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.stdout.strip() == version:
            return candidate
    sys.exit(f"error: Python {version} is not installed; install it, or leave its lane out")


class Environment:
    """The throw-away environment of a lane, with a copy of the clone's tracked files beside it."""

    def __init__(self, name: str, lane: Lane) -> None:
        self.lane, self.folder = lane, BUILD / name
        self.source, self.log = self.folder / "source", self.folder / "log.txt"
        self.python = str(self.folder / "bin" / "python")

    def run(self, *command: str | Path, cwd: Path | None = None, **environment: str) -> str:
        """Runs a command of the environment; its output goes to the lane's log, and is returned."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "PIP_REQUIRE_VIRTUALENV": "1", "OMP_WAIT_POLICY": "PASSIVE"} | environment
        result = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.folder,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{result.stdout}\n")
        if result.returncode:
            tail = "\n".join(result.stdout.splitlines()[-25:])
            raise RuntimeError(f"{' '.join(map(str, command[:6]))} failed; the end of {self.log}:\n{tail}")
        return result.stdout

    def pip(self, *arguments: str | Path) -> None:
        self.run(self.python, "-m", "pip", "install", "--quiet", *arguments)

    def make(self) -> str:
        """Makes the environment, and installs torch and what building and testing need."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.run(find_python(self.lane.python), "-m", "venv", self.folder)
        self.pip("--requirement", ROOT / "requirements" / "build.txt")
        vision = [f"torchvision=={self.lane.torchvision}"] if self.lane.torchvision else ["numpy"]
        self.pip(f"torch=={self.lane.torch}", *vision)
        self.pip("pytest>=8", "hypothesis", "pillow")
        version = "import torch; print('CUDA', torch.version.cuda) if torch.version.cuda else print('CPU')"
        return self.run(self.python, "-c", version).strip()

    def build(self) -> str:
        """Builds the wheel from source, with both libraries where nvcc is found, and installs it."""
        files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
        for name in filter(None, files):
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.source / name)
        cuda = {"DCNV4_MM_REQUIRE_CUDA": "1", "DCNV4_MM_CUDA_ARCHS": "90"}
        has_nvcc = shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()
        flags = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", self.folder / "wheel")
        self.run(
            *(self.python, "-m", "pip", "wheel", *flags, self.source),
            DCNV4_MM_REQUIRE_EXT="1",
            **(cuda if has_nvcc else {}),
        )
        (wheel,) = (self.folder / "wheel").glob("*.whl")
        extra = "[all]" if self.lane.models else ""
        # Wheels only, of the newest releases that the metadata allows.
        self.pip("--only-binary", ":all:", f"{wheel}{extra}", "setuptools<81")
        return "CPU and CUDA kernels" if has_nvcc else "CPU kernels (no nvcc)"

    def test(self) -> str:
        """Runs the tests of operators, layers and backbones on the installed wheel."""
        # The bodies of CUDA kernels on the host, and what compiles them, do not depend on torch.
        select = ("-k", "not on_host and not compile_gate", "-m", "not slow and not export")
        options = ("--config-file", self.source / "pyproject.toml", "-q", "-p", "no:cacheprovider")
        paths = [self.source / path for path in TESTS]
        said = self.run(self.folder / "bin" / "pytest", *options, *select, *paths)
        return re.findall(r"(\d+ passed)", said)[-1]

    def train(self, model: str) -> str:
        """Trains and tests a model through mim, for one or two iterations."""
        config, options = MODELS[model]
        sets = self.folder / "sets"
        if not (sets / "data" / "coco").exists():
            self.run(self.python, self.source / "dev" / "tiny_sets.py", sets)
        work, options = sets / config, ["--cfg-options", *WORKERS, *options]
        mim = (self.python, "-m", "mim")
        train = ("train", "dcnv4_mm", f"{config}.py", "--gpus", "0", "--work-dir", work)
        started = time.monotonic()
        said = self.run(*mim, *train, *options, "default_hooks.logger.interval=1", cwd=sets)
        losses = [float(loss) for loss in re.findall(r" loss: (\S+)", said)]
        if not losses or not all(0 < loss < 1e4 for loss in losses):
            raise RuntimeError(f"{config}: losses {losses}; see {self.log}")
        checkpoint = Path((work / "last_checkpoint").read_text())
        test = ("test", "dcnv4_mm", f"{config}.py", "--checkpoint", checkpoint, "--gpus", "0")
        self.run(*mim, *test, "--work-dir", work / "test", *options, cwd=sets)
        print(f"    {model}: trained and tested in {time.monotonic() - started:.0f} s", flush=True)
        return f"{len(losses)} steps, tested"


def run_lane(name: str, only: list[str]) -> dict[str, str]:
    """Runs a lane; gives its cells of the table. What fails stops the program."""
    lane = LANES[name]
    environment = Environment(name, lane)
    steps = {"environment": environment.make, "build": environment.build, "tests": environment.test}
    steps |= {model: lambda model=model: environment.train(model) for model in lane.models}
    cells = {}
    for step, function in steps.items():
        if only and step not in only:
            continue
        started = time.monotonic()
        cells[step] = function()
        print(f"  {name}, {step}: {cells[step]} ({time.monotonic() - started:.0f} s)", flush=True)
    return cells


def table(results: dict[str, dict[str, str]]) -> str:
    """The page of documentation."""
    head = ["Python", "torch", "built from source", "tests", *MODELS, "date", "commit"]
    lines = [
        "<!-- Auto-generated by dev/matrix.py. Do not edit. -->",
        "# Support matrix",
        "",
        "Every row is an environment that `make matrix` makes of wheels alone, in which it builds this",
        "package from source, runs the tests of operators, layers and backbones, and trains and tests",
        "models through mim for a few steps of random data, on the processor of a Linux x86-64 machine.",
        "\\"—\\" means not tested. `make test` covers everything else with the versions of",
        "[requirements/main.txt](../requirements/main.txt). Nothing here has run on a GPU.".replace('\\\\', ''),
        "",
        f"| {' | '.join(head)} |",
        f"| {' | '.join('---' for _ in head)} |",
    ]
    for name, lane in LANES.items():
        cells = results.get(name, {})
        row = [lane.python, f"{lane.torch} ({cells.get('environment', '—')})", cells.get("build", "—")]
        row += [cells.get(step, "—") for step in ("tests", *MODELS, "date", "commit")]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES))
    parser.add_argument("--only", nargs="+", default=[], help="steps, such as environment build tests")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to this page")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True)
    for name in args.lanes:
        lane = LANES[name]
        print(f"{name}: Python {lane.python}, torch {lane.torch}", flush=True)
        cells = run_lane(name, args.only)
        results[name] = cells | dict(date=date.today().isoformat(), commit=commit.strip())
        if args.write:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            args.write.write_text(table(results))


if __name__ == "__main__":
    main()
