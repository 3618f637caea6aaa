"""Timing, memory, relative error, and the one table that all results are written to."""

import csv
import ctypes
import datetime
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
KEYS = ("benchmark", "case", "measured", "dtype", "threads", "implementation")
FIGURES = (
    *("milliseconds", "spread_percent", "ratio", "target", "images_per_second"),
    *("eager_microseconds", "host_microseconds", "warm_microseconds", "floor_microseconds"),
    *("gigabytes_per_second", "mebibytes", "parameters_millions", "gigaflops", "relative_error"),
    *("loss", "accuracy", "paper", "reason"),
)
COMMON = ("device", "driver", "kernels", "torch", "cuda", "commit", "date")
FIELDS = (*KEYS, *FIGURES, *COMMON)
# The largest relative error of a result that is reported; the limits of the tests are tighter.
MAX_ERROR = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}

Call = Callable[[], object]
Timer = Callable[[], float]
CALLS_PER_GRAPH = 20


def spread(times: Sequence[float]) -> float:
    """Interquartile range in percent of the median; 0 for a single time."""
    if len(times) < 2:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4)
    return 100 * (high - low) / median


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Speedup of ``fast`` over ``slow``: the median over the turns, each at the same load."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference by the norm of ``expected``; NaN if the result has one."""
    expected = expected.to(result.device)
    return ((result.double() - expected).norm() / expected.norm()).item()


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def host_timer(
    call: Call, *, threads: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> Timer:
    """Times a call from Python until the device is done, in milliseconds.

    Args:
        call: What is timed. It runs as often as fits into 20 ms, at most 50 times, per turn.
        threads: CPU threads; ``None`` leaves them as they are.
        clock: Seconds; ``time.process_time`` ignores the other work of a busy machine.
    """

    def turn(repeats: int = 1) -> float:
        if threads is not None:
            torch.set_num_threads(threads)
        _synchronize()
        start = clock()
        for _ in range(repeats):
            call()
        _synchronize()
        return (clock() - start) / repeats

    turn()
    repeats = max(1, min(50, int(0.02 / max(turn(), 1e-6))))

    def timer() -> float:
        if repeats > 1:
            call()
        return 1e3 * turn(repeats)

    return timer


@cache
def _stream() -> "torch.cuda.Stream":
    return torch.cuda.Stream()


@contextmanager
def on_capture_stream() -> Iterator[None]:
    """Runs on the stream that graphs are captured on, if there is a GPU.

    Autograd runs a backward on the stream of its forward: one that is to be captured needs its
    forward here.
    """
    if not torch.cuda.is_available():
        yield
        return
    _stream().wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(_stream()):
        yield
    torch.cuda.current_stream().wait_stream(_stream())


def graph_timer(calls: Sequence[Call]) -> Timer:
    """Times calls in a CUDA graph, without the time of Python and of launches, in milliseconds.

    Args:
        calls: The same work on several sets of buffers, used in rotation, so that a set has left
            the L2 cache when it is used again.
    """
    with on_capture_stream():
        for call in calls:
            call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_stream()):
        for i in range(CALLS_PER_GRAPH):
            calls[i % len(calls)]()

    def timer() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / CALLS_PER_GRAPH

    return timer


def interleaved(
    timers: dict[Hashable, Timer],
    *,
    seconds: float,
    turns: int,
    agree: Callable[[bool], bool] = lambda go_on: go_on,
) -> dict[Hashable, list[float]]:
    """Runs timers in alternation, so that other work on the machine slows all of them alike.

    Args:
        timers: Functions that return the milliseconds of a call, by name.
        seconds: How long to measure, all of them together.
        turns: The smallest number of turns.
        agree: Says whether to go on, given whether this process would; for several processes.

    Returns:
        Milliseconds per call, one value per turn, by name.
    """
    for timer in timers.values():
        timer()
    times: dict[Hashable, list[float]] = {name: [] for name in timers}
    end = time.perf_counter() + seconds
    done = 0
    while agree(done < turns or time.perf_counter() < end):
        for name, timer in timers.items():
            times[name].append(timer())
        done += 1
    return times


def eager_microseconds(call: Call, repeats: int) -> tuple[float, float]:
    """Time per eager call until the device is done, and until Python goes on."""
    for _ in range(3):
        call()
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    host = time.perf_counter() - start
    _synchronize()
    return 1e6 * (time.perf_counter() - start) / repeats, 1e6 * host / repeats


def buffer_sets(bytes_of_one: int, device: torch.device) -> int:
    """Number of sets of buffers that exceeds three times the L2 cache."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(CALLS_PER_GRAPH, -(-3 * cache // bytes_of_one)))


def peak_bytes(call: Call, device: torch.device | str = "cpu") -> int:
    """Memory at the peak of a call beyond what is held before it; on the CPU of the process."""
    call()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    before = _settled_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is in use now
    result = call()
    peak = _process_bytes("VmHWM")
    del result
    return peak - before


def held_bytes(call: Call) -> int:
    """Memory of the process with the result of a call, less that before it."""
    call()
    before = _settled_bytes()
    result = call()
    held = _settled_bytes()
    del result
    return held - before


def saved_bytes(forward: Call, given: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves for the backward, each storage once, except ``given``."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    for tensor in given:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _settled_bytes() -> int:
    """Resident memory of the process after unused memory has gone back to the system."""
    # Large blocks come from the system and go back to it, so that what is in use is what is held.
    libc = ctypes.CDLL(None)
    mmap_threshold = -3
    libc.mallopt(mmap_threshold, 1 << 16)
    libc.malloc_trim(0)
    return _process_bytes("VmRSS")


def _process_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"{field}:\s+(\d+) kB", text)[0])


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _output_of(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # a machine without git or nvidia-smi
        return ""
    return run.stdout.strip()


def commit() -> str:
    """The commit that is measured, marked if the code differs from it."""
    git = ("git", "-C", str(RESULTS.parents[1]))
    changed = "+changes" if _output_of(*git, "status", "--porcelain", "csrc", "dcnv4_mm") else ""
    return (_output_of(*git, "rev-parse", "--short", "HEAD") or "unknown") + changed


class Table:
    """The results of one benchmark, written row by row.

    An interrupted benchmark continues: rows that the file has already are not measured again. Rows
    of other code, another machine or another torch are dropped.

    Args:
        benchmark: Its name; the file is ``<device>_<benchmark>.csv``.
        folder: Where the file is, or will be.
        device: What is measured.
        kernels: What serves the operator on the device.
        commit: Commit of the code that is measured.
    """

    def __init__(
        self, benchmark: str, *, folder: Path, device: torch.device, kernels: str, commit: str
    ):
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        self.common = {
            "device": device_name(device),
            "driver": _output_of(*query).partition("\n")[0] if device.type == "cuda" else "",
            "kernels": kernels,
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "",
            "commit": commit,
        }
        self.benchmark = benchmark
        device_part = re.sub(r"[^a-z0-9]+", "-", self.common["device"].lower()).strip("-")
        self.path = folder / f"{device_part}_{benchmark}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        rows = read(self.path) if self.path.exists() else []
        self.rows = [r for r in rows if all(r[k] == v for k, v in self.common.items())]
        self.done = {tuple(row[key] for key in KEYS) for row in self.rows}
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        print(", ".join(f"{k} {v}" for k, v in self.common.items() if v), flush=True)

    def has(self, **keys: object) -> bool:
        """Whether there is a row with these keys; those left out are empty."""
        row = dict.fromkeys(KEYS, "") | {"benchmark": self.benchmark} | keys
        return tuple(str(row[key]) for key in KEYS) in self.done

    def add(self, **values: object) -> None:
        """Writes a row, and prints it."""
        values = {"benchmark": self.benchmark, **values, **self.common}
        values["date"] = datetime.date.today().isoformat()
        row = {field: _text(values.pop(field, "")) for field in FIELDS}
        assert not values, f"no such columns: {', '.join(values)}"
        self.rows.append(row)
        self.done.add(tuple(row[key] for key in KEYS))
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)
        units = dict(milliseconds="ms", spread_percent="%", ratio="x", mebibytes="MiB")
        units |= dict(images_per_second="images/s", gigaflops="GFLOP", accuracy="% correct")
        figures = [f"{row[name]:>8} {unit}" for name, unit in units.items() if row[name]]
        if row["target"]:
            sign, limit = row["target"].split()
            value = float(row["ratio"])
            met = value >= float(limit) if sign == ">=" else value <= float(limit)
            figures += [f"{row['target']} {'met' if met else 'MISSED'}"]
        figures += [f"n/a: {row['reason']}" if row["reason"] else ""]
        keys = f"{row['case']:28} {row['measured']:16} {row['dtype']:9} {row['threads']:>2}"
        print(f"{keys} {row['implementation']:28} {' '.join(figures).rstrip()}", flush=True)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _text(value: object) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
