"""The section of docs/benchmarks.md on instructions, from the tables of ``results/sass``."""

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
The attention operators and BEV cross-attention, forward on sm_90, with the ratio to the first
version of our kernels: eight heads, four levels, 16 points of a query (BEV cross-attention: 32
points in each camera that sees it).

"""

MISSED = """
What the goals were and what is missed, with the reason from the machine code (SASS of nvcc 13.0)
and the next idea:

- Forward of DCNv4: at most 0.75 in float16 and 0.60 with fast sums (met), in float32 0.90 at 16
  channels per group: missed at 14 x 14, and at 56 x 56 on sm_75: an eighth more threads run than
  have a pixel. Next: tiles of several images. In float32 0.65 at 64 channels per group: missed on
  sm_90, where a thread has one vector of 4 channels of each of 4 times as many blocks: of its 583
  instructions, 144 multiply and add and 39 load.
- Backward of DCNv4: at most 0.25. Met on sm_90 at 16 channels per group but for 0.27 with a single
  image of 14 x 14; at 64 channels per group 0.29. The gradient of `offset_mask` takes 3 points per
  thread (tried as the next idea: 0.25 to 0.22 at 28 x 28, and 0.35 to 0.33 at 64 channels; with
  tiles of its own 0.29). Its loop has 97 instructions per point and 8 channels, of which 64 convert
  float16 pixels or multiply and add. On sm_75 0.31 to 0.39: additions to the gradient of `value`
  are of single floats, so that its loop has 158 instructions per point and 8 channels: 32
  additions, 32 multiplications, and up to 64 for addresses. Next: locating its points as the
  forward does (158 instructions per point now, most of them indices), and instances for fixed
  distances of a thread's channels, which fold into the instructions.
- Deterministic backward: at most 2.0 of the default one: met, 1.2 to 1.6 on sm_75 and 1.9 to 2.0 on
  sm_90, in about as many blocks of threads, or more. It adds twice the bytes: 1.9 to 2.1 times the
  sectors of the L2 cache. Conversions to 64-bit integers may bound it on sm_75, sm_86, sm_89 and
  sm_120, which make two per clock cycle and multiprocessor.
- Attention and BEV cross-attention, forward: at most 0.60 of the count of the first version. In
  float32 met or within 0.02, with several cameras 0.66. In float16 missed, 0.72 to 0.76: for a
  point and 8 channels, 83 instructions add the sample, of which 32 convert pixels, 32 multiply and
  add, and 4 load; locating has 80 per point, shared by the threads of a head. What was tried:
  offsets of all four pixels in shared memory instead of an index and flags (92 to 83 instructions),
  addresses of a query once and not per point, and sizes of levels as floats (148 to 80), one pass
  less over a softmax's parts and hardware exponentials for 16 bits. 16 channels per thread at 32
  channels per head give 0.69 (`ms_deform_attn` 0.72), but half as many blocks; not kept, as 900
  queries would leave an H100 half empty. Next: choose them where the grid is large.
"""


def section(folder: Path) -> str:
    """Markdown; nothing where there are no tables."""
    if not (folder / "dynamic.csv").exists():
        return ""
    rows = _read(folder / "dynamic.csv")
    lines = ["| shape | call | original | sm_75 | sm_90 |", "| --- | --- | ---: | ---: | ---: |"]
    for (shape, call), some in groupby(sorted(rows, key=_order), lambda row: _order(row)[:2]):
        same = [*some]
        cells = [f"{_millions(row['instructions'])} ({row['ratio']})" for row in same]
        name = f"{'x'.join(map(str, shape))} | {', '.join(call)}"
        original = _millions(same[0]["original_instructions"])
        lines.append(f"| {name} | {original} | {' | '.join(cells)} |")
    attention = [
        "| operator | dtype | D | first version | now |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in _read(folder / "attention.csv"):
        now = f"{_millions(row['instructions'])} ({row['ratio']})"
        first = _millions(row["first_instructions"])
        attention.append(
            f"| {row['operator']} | {row['dtype']} | {row['width']} | {first} | {now} |"
        )
    return "\n".join([HEAD, *lines, NOTES + "\n".join(attention), MISSED])


def _read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _order(row: dict[str, str]) -> tuple[tuple[int, ...], tuple[str, str], int]:
    shape = tuple(int(row[name]) for name in ("batch", "edge", "groups", "width"))
    return shape, (row["call"], row["dtype"]), int(row["arch"])


def _millions(count: str) -> str:
    return f"{int(count) / 1e6:.2f}"
