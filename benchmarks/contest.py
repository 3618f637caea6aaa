"""Contenders by turns in one process: their time, their memory, and the rows that tell it."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from cases import Case
from gpu_timing import Timer, interleave
from measure import interleaved, peak_bytes, spread
from table import Table
from torch import nn

Call = Callable[[], object]
FIGURES = (
    *("milliseconds", "spread_percent", "images_per_second", "mebibytes", "parameters_millions"),
    *("threads", "paper", "reason"),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure on, how long, and how much of it.

    Attributes:
        device: Where.
        dtypes: Names of the types of numbers; networks run under autocast in 16-bit ones.
        seconds: For each contest, all contenders together.
        sizes: Of networks.
        image: Rows and columns of pictures, instead of the stage's own.
        batch: Number of pictures, instead of the stage's own.
        cases: Of layers.
        methods: Detectors and segmentors.
    """

    device: torch.device
    dtypes: list[str]
    seconds: float
    sizes: list[str]
    image: int | None
    batch: int | None
    cases: list[Case]
    methods: list[str]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender that is ready.

    Attributes:
        call: What is timed.
        images: How many go through in one call.
        module: Whose parameters are counted.
        paper: The paper's figure for it, on its GPU.
    """

    call: Call
    images: int
    module: nn.Module
    paper: float | str = ""


def contest(
    table: Table,
    settings: Settings,
    *,
    case: object,
    measured: str,
    dtype: str,
    builders: dict[str, Callable[[], Entry]],
    in_graphs: bool = False,
    memory: bool = False,
) -> None:
    """Measures some contenders by turns; the first is ours, which must not fail.

    On a GPU, calls are timed in CUDA graphs, without what Python does, or one by one until the
    device is done. Or their memory is measured, which changes how the process allocates: last.
    """
    row = dict(case=str(case), measured=measured, dtype=dtype)
    ours = next(iter(builders))
    if table.has(**row, contender=ours):
        return
    row["threads"] = "" if settings.on_gpu else str(torch.get_num_threads())
    reasons: dict[str, str] = {}
    entries: dict[str, Entry] = {}
    calls: dict[str, Call | Timer] = {}
    for name, build in builders.items():
        try:
            entry = build()
            entry.call()
            calls[name] = Timer([entry.call]) if in_graphs and settings.on_gpu else entry.call
            entries[name] = entry
        # A peer may fail in any way of its own; that is a line, not our end.
        except Exception as error:
            if name == ours:
                raise
            reasons[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
    times = {} if memory else _measure(calls, settings)
    for name, reason in reasons.items():
        record(table, **row, contender=name, reason=reason)
    # Ours last: its row says that the others' are written.
    for name in sorted(entries, key=lambda name: name == ours):
        entry = entries[name]
        parameters = sum(parameter.numel() for parameter in entry.module.parameters())
        figures: dict[str, object] = dict(parameters_millions=1e-6 * parameters)
        if memory:
            figures["mebibytes"] = _memory(entry.call, settings) / 2**20
        else:
            median = statistics.median(times[name])
            figures |= dict(milliseconds=median, spread_percent=spread(times[name]))
            figures["images_per_second"] = 1e3 * entry.images / median
        record(table, **row, contender=name, **figures, paper=entry.paper)


def _measure(calls: dict[str, Call | Timer], settings: Settings) -> dict[str, list[float]]:
    """Milliseconds of each call, one number for every turn."""
    if any(isinstance(call, Timer) for call in calls.values()):
        times = interleave(calls, repeats=50)
        return {name: [1e-3 * time for time in some] for name, some in times.items()}

    def finished(call: Call) -> None:
        call()
        if settings.on_gpu:
            torch.cuda.synchronize()

    threads = dict.fromkeys(calls, torch.get_num_threads())
    functions = {name: partial(finished, call) for name, call in calls.items()}
    return interleaved(functions, seconds=settings.seconds, threads=threads)


def _memory(call: Call, settings: Settings) -> int:
    """Bytes that a call needs at its peak beside what was held before."""
    if not settings.on_gpu:
        return peak_bytes(call)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - held


def record(table: Table, **values: object) -> None:
    """Adds a row to the table, and prints it."""
    row = table.add(**values)
    figures = f"{row['mebibytes']:>9} MiB"
    if row["reason"]:
        figures = f"n/a: {row['reason']}"
    elif row["milliseconds"]:
        speed = f"{row['images_per_second']:>7} images/s"
        figures = f"{row['milliseconds']:>9} ms ±{row['spread_percent']:>5}% {speed}"
    print(
        f"{row['case']:28} {row['measured']:16} {row['dtype']:9} {row['contender']:24} {figures}",
        flush=True,
    )
