"""Builds, checks and measures the CUDA kernels on a GPU machine, the most valuable steps first.

    python benchmarks/gpu/first_contact.py --out FOLDER [--minutes 9] [--device cpu]

Needs torch built with CUDA, nvcc and pytest; more processes test at a time with pytest-xdist. Every
step has a limit of its own, and none stops the next: what has been measured is in FOLDER at any
time. ``--device cpu`` is a dry run without a GPU, whose figures mean nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Stages 1 to 4 of FlashInternImage-T, in a batch and alone; the paper's, a detector's; wide groups.
HEADLINE = (
    *("64x56x56x4x16", "64x28x28x8x16", "64x14x14x16x16", "64x7x7x32x16"),
    *("1x56x56x4x16", "1x28x28x8x16", "1x14x14x16x16", "1x7x7x32x16"),
    *("64x56x56x8x16", "1x200x320x8x16", "2x100x168x8x16", "64x56x56x4x32", "64x28x28x4x64"),
)
SMOKE = "recorded_results or stream or graph or width"
# What a profiler reports of the kernels.
COUNTERS = (
    *("ncu", "--csv", "--target-processes", "all", "--kernel-name", "regex:dcnv4|forward|backward"),
    *("--launch-count", "24", "--section", "SpeedOfLight", "--section", "Occupancy"),
    *("--section", "MemoryWorkloadAnalysis", "--section", "WarpStateStats"),
)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Name of its log in the folder.
        seconds: Its limit.
        command: Arguments of Python.
        variables: Environment variables.
        tool: A program that runs Python, and its arguments.
        gpu_only: Whether a dry run leaves it out.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    tool: tuple[str, ...] = ()
    gpu_only: bool = False


def steps(device: str, out: Path) -> list[Step]:
    """The steps in their order."""
    cuda = device == "cuda"
    marked = ("-m", "gpu") if cuda else ("-k", "on_host and recorded_results")
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *marked, "tests/ops")
    side_by_side = ("-n", str(os.cpu_count())) if find_spec("xdist") else ()
    run = ("benchmarks/run.py",)
    where = ("--device", device, "--out", str(out))
    quick = ("--turns", "10") if cuda else ("--turns", "1", "--seconds", "0", "--tiny")
    cases = ("--cases", *(HEADLINE if cuda else ("1x7x7x4x16",)))
    counted = ("--device", device, "--out", str(out / "counted"), "--turns", "1")
    counted += ("--cases", "64x28x28x8x16", "--dtypes", "float16")
    built = (("DCNV4_MM_NO_CUDA", "1"),)
    if cuda:
        built = (("DCNV4_MM_REQUIRE_CUDA", "1"), ("DCNV4_MM_CUDA_ARCHS", _arch()))
    models = ("--seconds", "2", "--dtypes", "float16", "--sizes", "t")
    golden = (*tests, "-k", "recorded_results")
    sanitize = ("compute-sanitizer", "--error-exitcode", "1", "--tool")
    listed = [
        Step("build", 120, ("setup.py", "--quiet", "build_ext", "--inplace"), built),
        Step("env", 40, ("-m", "dcnv4_mm.env")),
        Step("smoke", 60, (*tests, "-k", SMOKE), gpu_only=True),
        Step("headline", 120, (*run, "dcnv4_modes", *where, *quick, *cases)),
        Step("tests", 150, (*tests, *side_by_side)),
        Step("memcheck", 45, golden, _uncached(), (*sanitize, "memcheck"), gpu_only=True),
        Step("racecheck", 45, golden, _uncached(), (*sanitize, "racecheck"), gpu_only=True),
        Step("counters", 45, (*run, "dcnv4_modes", *counted), (), COUNTERS, gpu_only=True),
        Step("peers", 90, (*run, "dcnv4", *where, *quick, *cases)),
        Step("attention", 60, (*run, "flash_deform_attn", *where, *quick)),
        Step("bev", 45, (*run, "bev_cross_attn", *where, *quick)),
        Step("models", 90, (*run, "layers", "backbones", *where, *models), gpu_only=True),
        Step("bench", 300, (*run, "dcnv4_modes", *where, *quick, *(() if cuda else cases))),
    ]
    return [step for step in listed if cuda or not step.gpu_only]


def _arch() -> str:
    import torch

    return "".join(map(str, torch.cuda.get_device_capability()))


def _uncached() -> tuple[tuple[str, str], ...]:
    """Without torch's cache of allocations, which hides accesses beyond a tensor."""
    return (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)


def run(step: Step, seconds: float, out: Path) -> str:
    """Runs a step, its output going to a log in ``out``; returns how it ended."""
    command = [*step.tool, sys.executable, *step.command]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (out / f"{step.name}.log").open("w") as log:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=variables | dict(step.variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError:
            return f"{command[0]} is not installed"
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # With what it has started, which would slow the next step.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"cut after {seconds:.0f} s"
    return "ok" if status == 0 else f"FAILED with status {status}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--minutes", type=float, default=9, help="limit of all steps together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", nargs="+", metavar="step", help="only these")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started, failed = time.monotonic(), False
    for step in steps(args.device, args.out):
        if args.steps and step.name not in args.steps:
            continue
        left = 60 * args.minutes - (time.monotonic() - started)
        if left < 5:
            print("no time is left")
            break
        begun = time.monotonic()
        ended = run(step, min(step.seconds, left), args.out)
        failed |= ended.startswith("FAILED")
        line = f"{step.name:10} {time.monotonic() - begun:5.0f} s  {ended}"
        print(line, flush=True)
        with (args.out / "summary.txt").open("a") as summary:
            summary.write(f"{line}\n")
        log = (args.out / f"{step.name}.log").read_text(errors="replace").splitlines()
        print("\n".join(f"    {text}" for text in log[-6:]), flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
