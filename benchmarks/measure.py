"""Timing, memory and the recording of both."""

import csv
import ctypes
import datetime
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
FIELDS = (
    "benchmark",
    "case",
    "measured",
    "dtype",
    "threads",
    "contender",
    "milliseconds",
    "spread_percent",
    "ratio",
    "target",
    "device",
    "kernels",
    "torch",
    "commit",
    "date",
)


def interleaved(
    contenders: dict[str, Callable[[], object]], *, seconds: float, threads: dict[str, int]
) -> dict[str, list[float]]:
    """Times functions by turns, so that a busy machine slows all of them alike.

    Args:
        contenders: Functions without arguments, by name.
        seconds: How long to measure, all contenders together; at least seven turns. 0 for a dry run
            of two.
        threads: Number of threads for each contender.

    Returns:
        Milliseconds per call for every contender, one number for every turn. A turn takes about
        as long for a fast function, which is called several times, as for a slow one.
    """
    calls = {}
    for name, function in contenders.items():
        torch.set_num_threads(threads[name])
        function()
        start = time.perf_counter()
        function()
        calls[name] = max(1, min(50, int(0.02 / (time.perf_counter() - start))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    turns = 7 if seconds else 2
    while time.perf_counter() < end or len(next(iter(times.values()))) < turns:
        for name, function in contenders.items():
            torch.set_num_threads(threads[name])
            function()
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append(1e3 * (time.perf_counter() - start) / calls[name])
    return times


def spread(times: list[float]) -> float:
    """Distance of the quartiles, in percent of the median."""
    low, median, high = statistics.quantiles(times, n=4)
    return 100 * (high - low) / median


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times faster ``fast`` is: the median over the turns, each of which saw one load."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def peak_bytes(function: Callable[[], object]) -> int:
    """How much more memory the process holds at the peak of a call than before it (Linux)."""
    function()
    before = _settled_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is in use now
    result = function()
    peak = _memory_bytes("VmHWM")
    del result
    return peak - before


def held_bytes(function: Callable[[], object]) -> int:
    """How much more memory the process holds after a call, with its result, than before it."""
    function()
    before = _settled_bytes()
    result = function()
    held = _settled_bytes()
    del result
    return held - before


def _settled_bytes() -> int:
    """What the process holds, once what it does not need has gone back to the system."""
    # Large blocks come from the system and go back to it, so that what is in use is what is held.
    libc = ctypes.CDLL(None)
    mmap_threshold = -3
    libc.mallopt(mmap_threshold, 1 << 16)
    libc.malloc_trim(0)
    return _memory_bytes("VmRSS")


def _memory_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"{field}:\s+(\d+) kB", text)[0])


def device_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parents[1]), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # a machine without git
        return ""
    return run.stdout.strip()


def commit() -> str:
    """The commit that is measured, marked if the kernels differ from it."""
    changed = "+changes" if _git("status", "--porcelain", "csrc", "dcnv4_mm") else ""
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + changed


class Record:
    """Rows of a table that is printed as it grows, and saved at the end."""

    def __init__(self, kernels: str):
        self.rows: list[dict[str, object]] = []
        self.common = {
            "device": device_name(),
            "kernels": kernels,
            "torch": torch.__version__,
            "commit": commit(),
            "date": datetime.date.today().isoformat(),
        }
        print(", ".join(f"{name} {value}" for name, value in self.common.items()), flush=True)

    def add(
        self,
        *,
        benchmark: str,
        case: str,
        measured: str,
        dtype: str,
        threads: int,
        contender: str,
        times: list[float] | None = None,
        ratio: float | None = None,
        target: float | None = None,
        at_most: bool = False,
    ) -> None:
        """Adds a row; ``ratio`` is to be at least ``target``, or at most."""
        time_text = spread_text = ""
        if times is not None:
            time_text = f"{statistics.median(times):.3f}"
            spread_text = f"{spread(times):.0f}"
        ratio_text = "" if ratio is None else f"{ratio:.2f}"
        target_text = "" if target is None else f"{'<=' if at_most else '>='} {target:g}"
        values = (benchmark, case, measured, dtype, threads, contender)
        texts = (time_text, spread_text, ratio_text, target_text)
        self.rows.append(dict(zip(FIELDS, (*values, *texts), strict=False)) | self.common)
        met = ""
        if ratio is not None and target is not None:
            met = "met" if (ratio <= target if at_most else ratio >= target) else "MISSED"
        milliseconds = f"{time_text:>9} ms ±{spread_text:>3}%" if time_text else " " * 18
        print(
            f"{case:24} {measured:17} {dtype:9} {threads} thr  {contender:26}"
            f"{milliseconds} {ratio_text:>7} {target_text:7} {met}",
            flush=True,
        )

    def save(self, folder: Path) -> Path:
        """Writes all rows to ``<device>_<date>.csv``."""
        device = re.sub(r"[^a-z0-9]+", "-", self.common["device"].lower()).strip("-")
        path = folder / f"{device}_{self.common['date']}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        return path
