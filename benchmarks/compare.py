"""Implementations of the same thing, timed interleaved in one process."""

import argparse
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from measure import (
    MAX_ERROR,
    Call,
    Table,
    Timer,
    eager_microseconds,
    graph_timer,
    host_timer,
    interleaved,
    peak_bytes,
    ratio,
    spread,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run: device, dtypes, threads and duration.

    Attributes:
        device: Where.
        dtypes: Names of dtypes; networks run under autocast in 16-bit ones.
        threads: Numbers of CPU threads, each measured.
        seconds: For each comparison, all implementations together; CUDA graphs ignore it.
        turns: The smallest number of turns; ``None``: 7, in CUDA graphs 50, 2 for 0 seconds.
        options: Further arguments of the command line, which only some benchmarks have.
    """

    device: torch.device
    dtypes: list[str]
    threads: list[int]
    seconds: float
    turns: int | None
    options: argparse.Namespace

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One implementation, ready to be timed.

    Attributes:
        calls: What is timed: the same work on one or several sets of buffers.
        images: How many one call processes.
        bytes: Size of the tensors that one call reads and writes.
        dtype: Its own, where it is not that of the comparison; part of its name in the table.
        figures: Further columns of its row, such as ``relative_error`` or ``paper``.
    """

    calls: Sequence[Call]
    images: int | None = None
    bytes: int | None = None
    dtype: str | None = None
    figures: dict[str, object] = field(default_factory=dict)


Builders = dict[str, Callable[[], Implementation]]


def compare(
    table: Table,
    settings: Settings,
    *,
    case: object,
    measured: str,
    dtype: str,
    builders: Builders,
    in_graphs: bool = False,
    memory: bool = False,
    targets: dict[tuple[str, int], str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Measures implementations interleaved and writes a row for each.

    Args:
        table: Where the rows go; complete comparisons are not repeated.
        settings: See :class:`Settings`.
        case: Name of the input.
        measured: What is measured, such as "forward".
        dtype: Name of the dtype.
        builders: Functions that make the implementations, by name. The first is ours: if it fails,
            so does the benchmark; if another fails, its row has the reason.
        in_graphs: On a GPU, time the calls in CUDA graphs.
        memory: Measure the peak memory of a call instead. It changes how the process allocates.
        targets: What the ratio shall be, as ">= 5", by implementation and number of threads.
        clock: Clock for calls that are not in graphs.
    """
    row: dict[str, object] = dict(case=case, measured=measured, dtype=dtype)
    counts: list[int] = [0] if settings.on_gpu else settings.threads
    if memory:
        counts = counts[-1:]
    ours = next(iter(builders))
    if table.has(**row, threads=counts[-1] or "", implementation=ours):
        return
    graphs = in_graphs and settings.on_gpu
    found: dict[str, Implementation] = {}
    timers: dict[Hashable, Timer] = {}
    for name, build in builders.items():
        try:
            one = build()
            _check_error(one, dtype)
            one.calls[0]()
            if not memory:
                timers |= _timers(name, one, counts, graphs=graphs, clock=clock)
            found[name] = one
        # A peer may fail in any way of its own; that is a row, not our end.
        except Exception as error:
            if name == ours:
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            for count in counts:
                table.add(**row, threads=count or "", implementation=name, reason=reason)
    default_turns = 50 if graphs else 7 if settings.seconds else 2
    turns = settings.turns or default_turns
    seconds = 0 if graphs else settings.seconds
    times = interleaved(timers, seconds=seconds, turns=turns) if timers else {}
    # Ours with most threads last: its row says that the comparison is complete.
    for count in counts:
        for name in sorted(found, key=lambda name: name == ours):
            figures = _figures(found[name], times.get((name, count)))
            if memory:
                figures["mebibytes"] = peak_bytes(found[name].calls[0], settings.device) / 2**20
            elif name != ours:
                figures["ratio"] = ratio(times[name, count], times[ours, count])
            elif count > 1 and 1 in counts:
                _add_scaling(table, row, ours, count, times)
            if graphs:
                figures |= _eager_figures(found[name], times[name, "warm"])
            figures["target"] = (targets or {}).get((name, count))
            label = f"{name} in {found[name].dtype}" if found[name].dtype else name
            table.add(**row, threads=count or "", implementation=label, **figures)


def _check_error(implementation: Implementation, dtype: str) -> None:
    error = implementation.figures.get("relative_error")
    if error is not None and not error <= MAX_ERROR[dtype]:
        limit = MAX_ERROR[dtype]
        raise RuntimeError(f"relative error {error:.2g}, expected at most {limit:g} in {dtype}")


def _timers(
    name: str,
    implementation: Implementation,
    counts: list[int],
    *,
    graphs: bool,
    clock: Callable[[], float],
) -> dict[Hashable, Timer]:
    calls = implementation.calls
    if graphs:
        return {(name, 0): graph_timer(calls), (name, "warm"): graph_timer(calls[:1])}
    return {
        (name, count): host_timer(calls[0], threads=count or None, clock=clock) for count in counts
    }


def _figures(implementation: Implementation, times: list[float] | None) -> dict[str, object]:
    figures = dict(implementation.figures)
    if times is not None:
        median = statistics.median(times)
        figures |= dict(milliseconds=median, spread_percent=spread(times))
        if implementation.images:
            figures["images_per_second"] = 1e3 * implementation.images / median
        if implementation.bytes:
            figures["gigabytes_per_second"] = 1e-6 * implementation.bytes / median
    return figures


def _eager_figures(implementation: Implementation, warm: list[float]) -> dict[str, object]:
    eager, host = eager_microseconds(implementation.calls[0], repeats=100)
    figures = dict(eager_microseconds=eager, host_microseconds=host)
    return figures | dict(warm_microseconds=1e3 * statistics.median(warm))


def _add_scaling(
    table: Table, row: dict[str, object], ours: str, count: int, times: dict[Hashable, list[float]]
) -> None:
    """Ours with one thread beside ours with several."""
    one, several = times[ours, 1], times[ours, count]
    # Short calls are not worth starting a second thread.
    target = ">= 1.6" if count == 2 and statistics.median(one) >= 2 else None
    table.add(
        **row,
        threads=count,
        implementation=f"{ours}, one thread",
        milliseconds=statistics.median(one),
        spread_percent=spread(one),
        ratio=ratio(one, several),
        target=target,
    )
