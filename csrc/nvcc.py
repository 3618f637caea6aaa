"""Finds nvcc and chooses the GPU architectures to compile for; used by setup.py alone."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# Every graphics card from Turing on; later ones compile the PTX of the newest.
CARDS = (75, 80, 86, 89, 90, 100, 120)
# Orin and Thor, boards with Arm processors, do not run the machine code of cards.
BOARDS = (87, 110)
OLDEST = CARDS[0]
OURS, TORCHS = "DCNV4_MM_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"


class Archs(NamedTuple):
    """Architectures as numbers, 90 for compute capability 9.0, in ascending order."""

    code: list[int]
    """Those to make machine code for."""
    ptx: list[int]
    """Those whose PTX to keep, for later GPUs: the newest, and where the user wrote ``+PTX``."""
    left_out: list[int]
    """Those that were meant, but that this nvcc does not know or that are too old."""

    def flags(self) -> list[str]:
        """What nvcc is to be called with."""
        targets = [(arch, f"sm_{arch}") for arch in self.code]
        targets += [(arch, f"compute_{arch}") for arch in self.ptx]
        return [f"-gencode=arch=compute_{arch},code={target}" for arch, target in targets]


def find_nvcc() -> str | None:
    """The path of nvcc, or None where there is none."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [Path(home, "bin").as_posix() for home in homes if home]
    # CUDA_HOME is a wish, /usr/local/cuda a guess.
    places = [*folders[:-1], os.environ.get("PATH", ""), folders[-1]]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def version_of(nvcc: str) -> str:
    """The version of nvcc's toolkit, such as ``"12.6"``."""
    return _ask(nvcc, "--version", r"release (\d+\.\d+)")[0]


def choose_archs(nvcc: str) -> Archs:
    """What to compile for: what the environment asks for, or every supported GPU.

    ``DCNV4_MM_CUDA_ARCHS`` must be known to nvcc as a whole. ``TORCH_CUDA_ARCH_LIST``, which is
    often set once for many packages, and the default are cut down to what nvcc knows.
    """
    known = {int(n) for n in _ask(nvcc, "--list-gpu-arch", r"compute_(\d+)\b")}
    supported = {arch for arch in known if arch >= OLDEST}
    variable = next((name for name in (OURS, TORCHS) if os.environ.get(name, "").strip()), None)
    if variable:
        meant, with_ptx = _parse(variable)
    else:
        meant = {*CARDS, *(BOARDS if platform.machine() == "aarch64" else ())}
        with_ptx = set()
    code, left_out = sorted(meant & supported), sorted(meant - supported)
    if not code or (left_out and variable == OURS):
        sys.exit(
            f"error: {variable or 'the default'}: nvcc {version_of(nvcc)} does not compile for "
            f"{_text(left_out)}. Set {OURS} to some of {_text(sorted(supported))}, name a newer "
            "toolkit in CUDA_HOME, or set DCNV4_MM_NO_CUDA=1 to install without CUDA kernels."
        )
    return Archs(code, sorted({*with_ptx & supported, code[-1]}), left_out)


def remarks(nvcc: str, torch_cuda: str | None) -> list[str]:
    """What whoever builds should know of the toolkit, a line each.

    Args:
        nvcc: The path of nvcc.
        torch_cuda: The CUDA version of torch, such as ``"12.8"``; ``None`` if it has none.
    """
    version, archs = version_of(nvcc), choose_archs(nvcc)
    kept = f"{_text(archs.code)}, and PTX of {_text(archs.ptx)}"
    lines = [f"CUDA kernels are built by nvcc {version} for {kept}"]
    if archs.left_out:
        lines.append(
            f"left out: {_text(archs.left_out)}, not among what nvcc {version} compiles from "
            f"{OLDEST} on; for a newer GPU, name a newer toolkit in CUDA_HOME"
        )
    major = version.split(".")[0]
    if torch_cuda and int(major) > int(torch_cuda.split(".")[0]):
        lines.append(
            f"warning: the CUDA kernels will need a driver for CUDA {major} or later, as nvcc is "
            f"{version}; torch itself needs one for CUDA {torch_cuda}. With an older driver, name "
            "that toolkit in CUDA_HOME"
        )
    return lines


def _parse(variable: str) -> tuple[set[int], set[int]]:
    """Reads ``8.0;9.0+PTX`` or ``80 90``: all architectures, and those with ``+PTX``."""
    text = os.environ[variable]
    archs, with_ptx = set(), set()
    for item in re.split(r"[;,\s]+", text.strip(";, \t\n")):
        # A suffix, as in 9.0a, adds instructions that these kernels do not use.
        match = re.fullmatch(r"(\d+)\.?(\d)[af]?(\+PTX)?", item)
        if not match:
            way_out = f"; {OURS} takes precedence" if variable == TORCHS else ""
            sys.exit(
                f'error: {variable}: expected architectures such as "8.0;9.0+PTX" or "80;90", '
                f"got {item!r} in {text!r}{way_out}"
            )
        arch = int(match[1] + match[2])
        archs.add(arch)
        if match[3]:
            with_ptx.add(arch)
    return archs, with_ptx


def _ask(nvcc: str, question: str, pattern: str) -> list[str]:
    """All that matches ``pattern`` in nvcc's answer."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run([nvcc, question], text=True, **pipes)
    if result.returncode or not (found := re.findall(pattern, result.stdout)):
        sys.exit(
            f"error: {nvcc} {question} does not answer as nvcc 12.6 does: name another toolkit in "
            "CUDA_HOME, or set DCNV4_MM_NO_CUDA=1 to install without CUDA kernels. Its output: "
            f"{result.stdout.strip()[:500]}"
        )
    return found


def _text(archs: list[int]) -> str:
    return ";".join(map(str, archs))
