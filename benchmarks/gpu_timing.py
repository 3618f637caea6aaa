"""Timing on a CUDA device; on the CPU the same functions run as a dry run."""

import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

Call = Callable[[], object]
CALLS_PER_GRAPH = 20


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


class Timer:
    """Times one contender again and again; on a GPU without anything that Python does.

    Args:
        calls: The same work on several sets of buffers, used in turn, so that a set has left the
            L2 cache when its turn comes again. On a GPU they are captured in a CUDA graph.
    """

    def __init__(self, calls: Sequence[Call]):
        self.calls = calls
        self.graph: torch.cuda.CUDAGraph | None = None
        if not torch.cuda.is_available():
            return
        with on_capture_stream():
            for call in calls:
                call()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=_stream()):
            for i in range(CALLS_PER_GRAPH):
                calls[i % len(calls)]()

    def microseconds(self) -> float:
        """Time per call of one run over the graph."""
        if self.graph is None:
            start = time.perf_counter()
            self.calls[0]()
            return 1e6 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end) / CALLS_PER_GRAPH


def interleave(timers: dict[str, Timer], repeats: int) -> dict[str, list[float]]:
    """Runs all contenders by turns: microseconds per call, one number for every turn."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(repeats + 2):
        for name, timer in timers.items():
            duration = timer.microseconds()
            if turn >= 2:  # the first turns warm up
                times[name].append(duration)
    return times


def eager_microseconds(call: Call, repeats: int) -> tuple[float, float]:
    """Time per eager call: until the device is done, and until Python goes on."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        call()
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    host = time.perf_counter() - start
    synchronize()
    return 1e6 * (time.perf_counter() - start) / repeats, 1e6 * host / repeats


def buffer_sets(bytes_of_one: int, device: torch.device) -> int:
    """How many sets of buffers it takes to exceed three times the L2 cache."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(CALLS_PER_GRAPH, -(-3 * cache // bytes_of_one)))


def ceilings() -> dict[str, float]:
    """What the device can do at most, by ``gpu_ceilings.cu``: GB/s and 10^9 adds/s.

    Empty, with a line that says so, where there is no device or no nvcc.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None or not torch.cuda.is_available():
        missing = "nvcc" if nvcc is None else "CUDA device"
        print(f"ceilings: n/a, no {missing}: no share of them is given")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "ceilings")
        source = Path(__file__).with_name("gpu_ceilings.cu")
        subprocess.run([nvcc, "-O3", "-arch=native", str(source), "-o", str(program)], check=True)
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    print(output)
    return {name: float(value) for name, value in re.findall(r"^(\S+) ([\d.]+)", output, re.M)}


def spread_percent(times: Sequence[float]) -> float:
    """Distance of the quartiles, in percent of the median."""
    if len(times) < 2:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4)
    return 100 * (high - low) / median
