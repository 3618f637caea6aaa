"""Counts what the compiled kernels of DCNv4 do at shapes of FlashInternImage.

Usage, without a GPU: ``PYTHONPATH=tests:. python -m ops.ptx.count`` writes
``benchmarks/results/sass/dynamic.csv``. Instructions are those of warps, without moves and loads of
parameters, which are no instructions of a GPU; sectors have 32 bytes. ``original_instructions`` are
those of the original's kernels, compiled and counted likewise.
"""

import csv
import runpy

import torch
from helpers import ROOT
from ops.backends import Backend
from ops.dcnv4.problems import make_problem
from ops.ptx.compiled import ARCHS

TABLE = ROOT / "benchmarks/results/sass/dynamic.csv"
# Batch, edge of the map, groups, channels of a group: the original's instructions of the forward
# in float16 and float32 and of the backward in float16.
SHAPES = {
    (1, 56, 4, 16): (1.42e6, 1.17e6, 12.5e6),
    (2, 28, 8, 16): (1.42e6, 1.17e6, 12.5e6),
    (4, 14, 16, 16): (1.42e6, 1.17e6, 12.3e6),
    (2, 14, 8, 64): (1.40e6, 1.15e6, 7.4e6),
    # Parts of these two, as each image and group has its own warps.
    (1, 14, 8, 16): (1.42e6 / 8, 1.17e6 / 8, 12.3e6 / 8),
    (1, 14, 2, 16): (1.42e6 / 32, 1.17e6 / 32, 12.3e6 / 32),
    (1, 14, 1, 64): (1.40e6 / 16, 1.15e6 / 16, 7.4e6 / 16),
}
COLUMNS = ("instructions", "blocks", "load_sectors", "atomic_requests", "atomic_sectors")
CASES = [
    ("forward", torch.float16, False),
    ("forward fast", torch.float16, False),
    ("forward", torch.float32, False),
    ("backward", torch.float16, False),
    ("backward deterministic", torch.float16, True),
]


def count(arch, shape, kind, dtype, deterministic):
    """The sums over all kernels of a call."""
    batch, edge, groups, width = shape
    problem = make_problem(
        batch=batch, size=(edge, edge), groups=groups, width=width, spare=0, sigma=1.0, dtype=dtype
    )._replace(fast="fast" in kind)
    backend = Backend(f"ptx_{arch}" + "_deterministic" * deterministic, "dcnv4")
    backend.host.counters()
    (backend.forward if kind.startswith("forward") else backend.backward)(problem)
    counters = backend.host.counters().values()
    return {name: sum(getattr(kernel, name) for kernel in counters) for name in COLUMNS}


def original(shape, kind, dtype):
    forward16, forward32, backward = SHAPES[shape]
    if kind.startswith("backward"):
        return backward
    return forward16 if dtype == torch.float16 else forward32


def nvcc_release():
    """Counts of different compilers are not comparable."""
    return runpy.run_path(str(ROOT / "dev/sass_counts.py"))["nvcc_release"]()


def main():
    release = nvcc_release()
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["nvcc", "arch", "batch", "edge", "groups", "width", "dtype", "call", *COLUMNS]
        writer.writerow([*head, "original_instructions", "ratio"])
        for kind, dtype, deterministic in CASES:
            for arch in ARCHS:
                for shape in SHAPES:
                    counts = count(arch, shape, kind, dtype, deterministic)
                    before = original(shape, kind, dtype)
                    ratio = f"{counts['instructions'] / before:.2f}"
                    name = str(dtype).removeprefix("torch.")
                    row = [release, arch, *shape, name, kind, *counts.values()]
                    writer.writerow([*row, round(before), ratio])
                    file.flush()


if __name__ == "__main__":
    main()
