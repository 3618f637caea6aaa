"""Limits of a GPU, and the least time of an operator that follows from them."""

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path


@cache
def ceilings() -> dict[str, float]:
    """Results of ``ceilings.cu``: GB/s and 10^9 additions/s; empty, with a line, without a GPU."""
    import torch

    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None or not torch.cuda.is_available():
        missing = "nvcc" if nvcc is None else "CUDA device"
        print(f"ceilings: n/a, no {missing}: no ratio to them is given")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "ceilings")
        source = Path(__file__).with_suffix(".cu")
        subprocess.run([nvcc, "-O3", "-arch=native", str(source), "-o", str(program)], check=True)
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    print(output)
    return {name: float(value) for name, value in re.findall(r"^(\S+) ([\d.]+)", output, re.M)}


def floor_microseconds(
    memory_bytes: float, l1_bytes: float, limits: dict[str, float]
) -> float | None:
    """The least time that the memory and the L1 cache allow; ``None`` without ceilings."""
    if not limits:
        return None
    gather = max(value for name, value in limits.items() if name.startswith("gather"))
    return 1e-3 * max(memory_bytes / limits["copy"], l1_bytes / gather)
