"""Builds, checks and measures the CUDA kernels on a GPU machine, the most valuable steps first.

    python benchmarks/gpu/first_contact.py --out FOLDER [--minutes 9] [--device cpu]

Needs torch built with CUDA, nvcc and pytest; more processes test at a time with pytest-xdist. Every
step has a limit of its own, and none stops the next: what has been measured is in FOLDER at any
time. ``--device cpu`` is a dry run without a GPU, whose figures mean nothing.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Stages 1 to 4 of the backbones, a small batch, and wide groups.
HEADLINE = ("64x56x56x4x16", "64x28x28x8x16", "64x14x14x16x16", "64x7x7x32x16", "1x56x56x4x16")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Name of its log in the folder.
        seconds: Its limit.
        command: Arguments of Python.
        variables: Environment variables.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()


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
    built = (("DCNV4_MM_NO_CUDA", "1"),)
    if cuda:
        built = (("DCNV4_MM_REQUIRE_CUDA", "1"), ("DCNV4_MM_CUDA_ARCHS", _arch()))
    listed = [
        Step("build", 150, ("setup.py", "--quiet", "build_ext", "--inplace"), built),
        Step("env", 60, ("-m", "dcnv4_mm.env")),
        Step("smoke", 90, (*tests, "-k", "recorded_results or stream or graph")),
        Step("headline", 150, (*run, "dcnv4_modes", *where, *quick, *cases)),
        Step("tests", 170, (*tests, *side_by_side)),
        Step("memcheck", 60, (*tests, "-k", "recorded_results"), _uncached()),
        Step("racecheck", 60, (*tests, "-k", "recorded_results"), _uncached()),
        Step("peers", 120, (*run, "dcnv4", *where, *quick, *cases)),
        Step("attention", 90, (*run, "flash_deform_attn", *where, *quick)),
        Step("bev", 60, (*run, "bev_cross_attn", *where, *quick)),
        Step("bench", 300, (*run, "dcnv4_modes", *where, *quick, *(() if cuda else cases))),
    ]
    # These need a GPU, or repeat what the tests of a dry run do.
    return (
        listed if cuda else [s for s in listed if s.name not in ("memcheck", "racecheck", "smoke")]
    )


def _arch() -> str:
    import torch

    return "".join(map(str, torch.cuda.get_device_capability()))


def _uncached() -> tuple[tuple[str, str], ...]:
    """Without torch's cache of allocations, which hides accesses beyond a tensor."""
    return (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)


def run(step: Step, seconds: float, out: Path) -> str:
    """Runs a step, its output going to a log in ``out``; returns how it ended."""
    command = [sys.executable, *step.command]
    if step.name.endswith("check"):
        command = ["compute-sanitizer", "--tool", step.name, "--error-exitcode", "1", *command]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with (out / f"{step.name}.log").open("w") as log:
        try:
            ended = subprocess.run(
                command,
                cwd=ROOT,
                env=variables | dict(step.variables),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return f"cut after {seconds:.0f} s"
        except FileNotFoundError:
            return f"{command[0]} is not installed"
    return "ok" if ended.returncode == 0 else f"FAILED with status {ended.returncode}"


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
