"""The section of docs/benchmarks.md on instructions, from ``results/sass/dynamic.csv``."""

import csv
from itertools import groupby
from pathlib import Path

HEAD = """## Instructions of the CUDA kernels

Counted without a GPU: an interpreter runs the compiled PTX of DCNv4 (`tests/ops/ptx`). Millions of
instructions of warps, over all kernels of a call, and in parentheses the ratio to the original's
kernels, which were compiled and counted likewise. Counts are no times: they say nothing of caches
and latencies. Shapes are batch, edge of the map, groups, and channels of a group. The original's
counts of single images of 14 x 14 are those of the larger batch with such groups, divided.
"""

NOTES = """
What the goals were and what is missed, with the reason and the next idea, which was not tried:

- Forward: at most 0.75 in float16 and 0.60 with fast sums (met), in float32 0.90 at 16 channels
  per group: missed at 14 x 14, and at 56 x 56 on sm_75: compared with the other shapes an eighth
  more threads run than have a pixel. Next: tiles of several images. In float32 0.65 at 64 channels
  per group: missed on sm_90, where four times as many blocks run.
- Backward: at most 0.25. Met within 0.01 on sm_90 at 56 x 56 and 28 x 28, missed elsewhere. In the
  gradient of `offset_mask` every point has a thread, which computes the indices of its pixel and
  group again and loads the gradient of the output again. Next: three points per thread. Before
  sm_90 additions are of single floats, with 64-bit address arithmetic for each. Next: instances
  for fixed distances of a thread's channels, which fold into the instructions.
- Deterministic backward: at most 2.0 of the default one: met, 1.2 to 1.6 on sm_75 and 1.7 to 1.9 on
  sm_90, in about as many blocks of threads, or more. It adds twice the bytes: 1.9 to 2.1 times the
  sectors of the L2 cache. Conversions to 64-bit integers may bound it on sm_75, sm_86, sm_89 and
  sm_120, which make two per clock cycle and multiprocessor.
- Attention and BEV cross-attention, forward: at most 0.60 of the count of the first version: not
  tried. Next: two points located per thread, levels in shared memory.
"""


def section(table: Path) -> str:
    """Markdown; nothing where there is no table."""
    if not table.exists():
        return ""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| shape | call | original | sm_75 | sm_90 |", "| --- | --- | ---: | ---: | ---: |"]
    for (shape, call), some in groupby(sorted(rows, key=_order), lambda row: _order(row)[:2]):
        same = [*some]
        cells = [f"{_millions(row['instructions'])} ({row['ratio']})" for row in same]
        name = f"{'x'.join(map(str, shape))} | {', '.join(call)}"
        original = _millions(same[0]["original_instructions"])
        lines.append(f"| {name} | {original} | {' | '.join(cells)} |")
    return "\n".join([HEAD, *lines, NOTES])


def _order(row: dict[str, str]) -> tuple[tuple[int, ...], tuple[str, str], int]:
    shape = tuple(int(row[name]) for name in ("batch", "edge", "groups", "width"))
    return shape, (row["call"], row["dtype"]), int(row["arch"])


def _millions(count: str) -> str:
    return f"{int(count) / 1e6:.2f}"
