"""Counts what the compiled kernels do: of DCNv4 at shapes of FlashInternImage, of attention.

Usage, without a GPU: ``PYTHONPATH=tests:. python -m ops.ptx.count [dcnv4] [attention]`` writes
``dynamic.csv`` and ``attention.csv`` of ``benchmarks/results/sass``. Instructions are those of
warps, without moves and loads of parameters, which are no instructions of a GPU; sectors have 32
bytes. ``original_instructions`` are those of the original's kernels, compiled and counted likewise,
``first_instructions`` those of the first version of our kernels (commit 9130c4b).
"""

import csv
import runpy
import sys

import torch
from helpers import ROOT
from ops.backends import Backend
from ops.bev_cross_attn import problems as bev
from ops.dcnv4.problems import make_problem
from ops.flash_deform_attn import problems as attention
from ops.ptx.compiled import ARCHS

TABLE = ROOT / "benchmarks/results/sass/dynamic.csv"
ATTENTION_TABLE = TABLE.with_name("attention.csv")
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

# Operator, channels of a head, dtype: the forward's instructions in the first version, on sm_90.
# Eight heads, four levels, four points; of BEV cross-attention six cameras, each of which sees a
# quarter of the queries, and eight points.
ATTENTION = {
    ("flash_deform_attn", 32, torch.float16): 903380,
    ("flash_deform_attn", 32, torch.float32): 899300,
    ("flash_deform_attn", 64, torch.float16): 1485460,
    ("flash_deform_attn", 64, torch.float32): 1505860,
    ("ms_deform_attn", 32, torch.float16): 780300,
    ("ms_deform_attn", 32, torch.float32): 781320,
    ("ms_deform_attn", 64, torch.float16): 1359320,
    ("ms_deform_attn", 64, torch.float32): 1381760,
    ("bev_cross_attn", 32, torch.float16): 947759,
    ("bev_cross_attn", 32, torch.float32): 893752,
}


def attention_problem(operator, width, dtype):
    if operator == "bev_cross_attn":
        problem = bev.make_problem(
            batch=1,
            cameras=6,
            shapes=((16, 28), (8, 14), (4, 7), (2, 4)),
            queries=100,
            heads=8,
            points=8,
            pillar=4,
            width=width,
            reach=0.1,
            dtypes=(dtype, dtype),
        )
        # As in a BEV grid, a camera sees neighbouring queries.
        distances = torch.arange(100) - 100 * torch.arange(6)[:, None] // 6
        return problem._replace(bev_mask=(distances % 100 < 25)[None])
    return attention.make_problem(
        packed=operator == "flash_deform_attn",
        batch=1,
        shapes=((16, 16), (8, 8), (4, 4), (2, 2)),
        queries=340,
        heads=8,
        points=4,
        width=width,
        reach=0,
        dtypes=(dtype, dtype),
    )


def count_attention(arch, operator, width, dtype):
    folder = "bev_cross_attn" if operator == "bev_cross_attn" else "flash_deform_attn"
    backend = Backend(f"ptx_{arch}", folder)
    backend.host.counters()
    backend.forward(attention_problem(operator, width, dtype))
    (counters,) = backend.host.counters().values()
    return counters.instructions


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


def write_attention():
    with ATTENTION_TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["nvcc", "arch", "operator", "width", "dtype", "instructions"]
        writer.writerow([*head, "first_instructions", "ratio"])
        for (operator, width, dtype), first in ATTENTION.items():
            instructions = count_attention(90, operator, width, dtype)
            name = str(dtype).removeprefix("torch.")
            row = [nvcc_release(), 90, operator, width, name, instructions, first]
            writer.writerow([*row, f"{instructions / first:.2f}"])


def main():
    names = sys.argv[1:] or ["dcnv4", "attention"]
    if "attention" in names:
        write_attention()
    if "dcnv4" in names:
        write_dcnv4()


def write_dcnv4():
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
