"""Counts the machine instructions of the CUDA kernels, which needs no GPU.

Usage: ``python dev/sass_counts.py FOLDER [--write]``, with a folder of cubins for one architecture
each, such as those that ``nvcc --keep`` leaves. Prints the counts beside those of the committed
table, or writes them into it.

Instructions are those of a thread, without padding. For the forward kernels of DCNv4 with 3x3
kernels, ``d16``, ``d32`` and ``d64`` are the instructions for 8 channels and 9 points inside the
image, at so many channels per group: everything but the loop that locates points, and its share.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TABLE = Path(__file__).parents[1] / "benchmarks/results/sass/counts.csv"
KEYS = ("arch", "operator", "kernel")
COUNTS = ("instructions", "registers", "stack", "loads16", "atomics", "d16", "d32", "d64")
# What a count may rise by before it is a regression.
TOLERANCE = 0.03

# The attention operators have the same kernels, instances of an operator's Sampling.
_ENTRY = re.compile(
    r"(dcnv4|flash_deform_attn|bev_cross_attn)4cuda.*?\d((?:forward|backward\w*?)_kernel)I(.*?)EEv"
)
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);")


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, or the one inside triton."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which(name) or shutil.which(name, path=f"{home}/bin")
    if found or not (triton := find_spec("triton")):
        return found
    path = Path(triton.origin).parent / "backends/nvidia/bin" / name
    return str(path) if path.exists() else None


def nvcc_release() -> str:
    """Counts of different compilers are not comparable."""
    text = subprocess.check_output([find_tool("nvcc"), "--version"], text=True)
    return re.search(r"release ([\d.]+)", text)[1]


def count_cubin(cubin: Path, cuobjdump: str) -> dict[tuple[str, str, str], dict[str, int]]:
    """(architecture, operator, kernel) -> its counts."""
    sass = subprocess.check_output([cuobjdump, "-sass", cubin], text=True)
    usage = subprocess.check_output([cuobjdump, "-res-usage", cubin], text=True)
    resources = dict(re.findall(r"Function (\w+):\s+(.*)", usage))
    arch = re.search(r"code for sm_(\d+)", sass)[1]
    rows = {}
    for part in sass.split("Function : ")[1:]:
        name = part.split()[0]
        if not (match := _ENTRY.search(name)):
            continue
        kernel = f"{match[2].removesuffix('_kernel')} {_arguments(match[3])}"
        instructions = [
            (int(address, 16), opcode, operands)
            for address, _, opcode, operands in _INSTRUCTION.findall(part)
            if opcode != "NOP"
        ]
        counts = {
            "instructions": len(instructions),
            "registers": int(re.search(r"REG:(\d+)", resources[name])[1]),
            "stack": int(re.search(r"STACK:(\d+)", resources[name])[1]),
            "loads16": sum(o.startswith("LDG") and "128" in o for _, o, _ in instructions),
            "atomics": sum(o.startswith(("RED", "ATOM")) for _, o, _ in instructions),
            **_for_eight_channels(kernel, instructions),
        }
        operator = "bev_cross_attn" if "bev_cross_attn" in match[3] else match[1]
        rows[arch, operator, kernel] = counts
    return rows


def _arguments(mangled: str) -> str:
    """``NS_4HalfELi8ELi9ELi0E`` -> ``f16 8 9 0``."""
    types = {"f": "f32", "d": "f64"}
    storage = re.match(r"NS\w*?_(?:4Half|8BFloat16)E|[fd]", mangled)[0]
    short = types.get(storage, "bf16" if "BFloat16" in storage else "f16")
    return " ".join([short, *re.findall(r"L[ib](\d+)E", mangled[len(storage) :] + "E")])


def _for_eight_channels(kernel, instructions):
    match = re.fullmatch(r"forward (f16|bf16|f32) (\d+) 9 (\d)", kernel)
    if not match:
        return {}
    channels, alone = int(match[2]), int(match[3]) & 2
    loops = [
        (int(target, 16), address)
        for address, opcode, operands in instructions
        if opcode.startswith("BRA")
        for target in re.findall(r"0x([0-9a-f]+)\s*$", operands)
        if int(target, 16) < address
    ]
    looped = sum(any(a <= i[0] <= b for a, b in loops) for i in instructions)
    straight = len(instructions) - looped
    counts = {}
    for width in (16, 32, 64):
        lanes = width // channels
        if lanes and (not alone or lanes == 1):
            counts[f"d{width}"] = round((straight + looped * 9 / lanes) * 8 / channels)
    return counts


def read_table() -> tuple[str, dict[tuple[str, str, str], dict[str, int]]]:
    """The release of nvcc, and the counts that are committed."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = {
        tuple(row[key] for key in KEYS): {name: int(row[name]) for name in COUNTS if row[name]}
        for row in rows
    }
    return rows[0]["nvcc"], table


def write_table(counts) -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["nvcc", *KEYS, *COUNTS])
        for key, row in sorted(counts.items()):
            writer.writerow([nvcc_release(), *key, *(row.get(name, "") for name in COUNTS)])


def regressions(counts, table) -> list[str]:
    """What rose by more than the tolerance, a line each; kernels without an entry count too."""
    lines = []
    for key, row in counts.items():
        if key not in table:
            lines.append(f"{' '.join(key)}: not in {TABLE.name}")
            continue
        lines += [
            f"{' '.join(key)}: {name} {row[name]}, was {before}"
            for name, before in table[key].items()
            if row[name] > before * (1 + TOLERANCE)
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="searched for *.cubin")
    parser.add_argument("--write", action="store_true", help="write the table")
    arguments = parser.parse_args()
    if not (cuobjdump := find_tool("cuobjdump")):
        sys.exit("cuobjdump is neither on PATH nor in CUDA_HOME nor in triton")
    counts = {}
    for cubin in sorted(arguments.folder.rglob("*.cubin")):
        counts |= count_cubin(cubin, cuobjdump)
    if arguments.write:
        write_table(counts)
    elif lines := regressions(counts, read_table()[1]):
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
