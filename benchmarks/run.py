"""Measures the operators and the backbone of the installed package and records the figures.

    python benchmarks/run.py                         # everything
    python benchmarks/run.py dcnv4 --threads 1 2 --dtypes float32 bfloat16

Ratios are what counts: all contenders of a row run by turns in one process. Stop other work first.
"""

import argparse
from pathlib import Path

import backbone
import dcnv4
import flash_deform_attn
import torch
from measure import RESULTS, Record

from dcnv4_mm.ops.functional import backend_info

# Memory comes last: measuring it changes how the process allocates.
BENCHMARKS = ("dcnv4", "flash_deform_attn", "backbone", "memory")
DTYPES = ("float64", "float32", "float16", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmarks", nargs="*", metavar="benchmark", help=", ".join(BENCHMARKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--seconds", type=float, default=8.0, help="for each case and direction")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the CSV file")
    arguments = parser.parse_args()
    unknown = set(arguments.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {min(unknown)!r}, choose from {', '.join(BENCHMARKS)}")

    names = arguments.benchmarks or BENCHMARKS
    record = Record(kernels=backend_info()["dcnv4"]["cpu"])
    dtypes = [getattr(torch, name) for name in arguments.dtypes]
    if "dcnv4" in names:
        dcnv4.run(record, arguments.threads, dtypes, arguments.seconds)
    if "flash_deform_attn" in names:
        flash_deform_attn.run(record, arguments.threads, dtypes, arguments.seconds)
    if "backbone" in names:
        backbone.run(record, arguments.threads, arguments.seconds)
    if "memory" in names:
        for dtype in dtypes:
            dcnv4.run_memory(record, dtype)
    print(f"saved {record.save(arguments.out)}")


if __name__ == "__main__":
    main()
