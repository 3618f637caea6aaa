"""Measures the CUDA kernels: kernel time, eager time, share of what the device can do, peers.

    python benchmarks/gpu.py bench      # our kernels: every shape, dtype, mode and direction
    python benchmarks/gpu.py peers      # ours and what could stand in their place, by turns
    python benchmarks/gpu.py attention  # deformable attention, ours and the others'
    python benchmarks/gpu.py bev        # attention of BEV queries to cameras, likewise

A row is written as soon as it is measured; a run that was cut short goes on where it stopped.
``--device cpu`` is a dry run: the same rows from few calls of the CPU kernels, worth nothing.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import gpu_attention
import gpu_bev
import gpu_figures
import torch
from cases import PAPER_CASES, STAGE_CASES, WIDE_CASES, Case, case_argument, make_inputs
from gate import check_operator
from gpu_peers import OURS, PEERS, Contender
from gpu_timing import (
    Timer,
    buffer_sets,
    ceilings,
    eager_microseconds,
    interleave,
    on_capture_stream,
    spread_percent,
)
from measure import RESULTS, commit
from table import Table
from torch import Tensor

from dcnv4_mm.ops.dcnv4.reference import dcnv4_forward_reference
from dcnv4_mm.ops.functional import backend_info

DTYPES = ("float16", "bfloat16", "float32")
FIGURES = (
    *("microseconds", "spread_percent", "warm_microseconds", "eager_microseconds"),
    *("host_microseconds", "floor_microseconds", "share_of_floor", "gigabytes_per_second"),
    "relative_error",
)


@dataclass(frozen=True)
class Settings:
    """How thoroughly to measure."""

    device: torch.device
    repeats: int
    eager_calls: int


def floor_microseconds(case: Case, itemsize: int, backward: bool, limits: dict) -> float | None:
    """The least time that the device's memory and its L1 allow; None where it was not measured.

    Memory: every tensor once. L1: four corners of nine points for every number of the output.
    """
    if not limits:
        return None
    pixels_groups = case.batch * case.height * case.width * case.groups
    through_memory = (3 * case.channels + 54) if backward else (2 * case.channels + 27)
    through_l1 = 36 * case.channels
    seconds = max(
        through_memory / limits["copy"],
        through_l1 / max(v for k, v in limits.items() if k.startswith("gather")),
    )
    return 1e-3 * pixels_groups * itemsize * seconds


def memory_bytes(case: Case, itemsize: int, backward: bool) -> int:
    pixels_groups = case.batch * case.height * case.width * case.groups
    per_pixel = (3 * case.channels + 54) if backward else (2 * case.channels + 27)
    return pixels_groups * itemsize * per_pixel


def relative_error(output: Tensor, case: Case, value: Tensor, offset_mask: Tensor) -> float:
    """Distance from the float64 reference, relative to its norm; a few images at a time."""
    settings = ([3, 3], [1, 1], [1, 1], [1, 1], case.groups, 1.0, False, False)
    wrong = norm = 0.0
    for part in range(0, case.batch, 4):
        some = slice(part, part + 4)
        arguments = (value[some].double(), offset_mask[some].double())
        expected = dcnv4_forward_reference(*arguments, *settings)
        wrong += (output[some].double() - expected).square().sum().item()
        norm += expected.square().sum().item()
    return (wrong / norm) ** 0.5


def record(table: Table, **values: object) -> None:
    """Adds a row to the table, and prints it."""
    row = table.add(**values)
    share = f"{row['share_of_floor']:>5} of floor" if row["share_of_floor"] else ""
    print(
        f"{row['case']:22} {row['measured']:9} {row['dtype']:9} {row['contender']:30}"
        f"{row['microseconds']:>10} us {share}",
        flush=True,
    )


def draw(case: Case, dtype: str, settings: Settings) -> tuple[Tensor, ...]:
    return tuple(t.to(settings.device) for t in make_inputs(case, getattr(torch, dtype)))


def forward_calls(contender: Contender, sets: int) -> list[Callable[[], object]]:
    """The forward on several copies of the inputs; what is put out is dropped."""

    def call(inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            contender.function(*inputs)

    copies = [tuple(t.clone() for t in contender.inputs) for _ in range(sets)]
    return [lambda inputs=inputs: call(inputs) for inputs in copies]


def backward_calls(contender: Contender, sets: int) -> list[Callable[[], object]]:
    """The backward alone, of forwards that were computed before."""

    def prepare() -> Callable[[], object]:
        with on_capture_stream():
            leaves = [t.clone().requires_grad_() for t in contender.inputs]
            output = contender.function(*leaves)
            gradient = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)

    return [prepare() for _ in range(sets)]


def raw_backward_calls(
    case: Case, inputs: tuple[Tensor, ...], sets: int, *, deterministic: bool
) -> list[Callable[[], object]]:
    """Our backward operator without autograd around it."""
    geometry = ([3, 3], [1, 1], [1, 1], [1, 1], case.groups, 1.0, False, False)

    def call(value: Tensor, offset_mask: Tensor, gradient: Tensor) -> None:
        torch.ops.dcnv4_mm.dcnv4_backward(
            gradient, value, offset_mask, *geometry, deterministic, True, True
        )

    copies = [tuple(t.clone() for t in inputs) for _ in range(sets)]
    return [lambda tensors=tensors: call(*tensors) for tensors in copies]


def bench(table: Table, cases: list[Case], settings: Settings) -> None:
    """Our kernels in every mode."""
    limits = ceilings()
    for case in cases:
        for dtype in DTYPES:
            inputs = draw(case, dtype, settings)
            itemsize = inputs[0].element_size()
            for measured, contender, calls in _modes(case, dtype, inputs, settings):
                if table.has(str(case), measured, dtype, contender):
                    continue
                backward = measured == "backward"
                timers = {"cold": Timer(calls), "warm": Timer(calls[:1])}
                times = interleave(timers, settings.repeats)
                eager, host = eager_microseconds(calls[0], settings.eager_calls)
                microseconds = statistics.median(times["cold"])
                floor = floor_microseconds(case, itemsize, backward, limits)
                error: float | str = ""
                if not backward:
                    function = PEERS[contender](case, *inputs[:2]).function
                    error = relative_error(function(*inputs[:2]), case, *inputs[:2])
                record(
                    table,
                    case=case,
                    measured=measured,
                    dtype=dtype,
                    contender=contender,
                    microseconds=microseconds,
                    spread_percent=spread_percent(times["cold"]),
                    warm_microseconds=statistics.median(times["warm"]),
                    eager_microseconds=eager,
                    host_microseconds=host,
                    floor_microseconds=floor or "",
                    share_of_floor=floor / microseconds if floor else "",
                    gigabytes_per_second=1e-3
                    * memory_bytes(case, itemsize, backward)
                    / microseconds,
                    relative_error=error,
                )


def _modes(
    case: Case, dtype: str, inputs: tuple[Tensor, ...], settings: Settings
) -> Iterator[tuple[str, str, list[Callable[[], object]]]]:
    sets = buffer_sets(memory_bytes(case, inputs[0].element_size(), False), settings.device)
    for name in (OURS, f"{OURS}, fast"):
        if name == OURS or dtype == "float16":
            yield "forward", name, forward_calls(PEERS[name](case, *inputs[:2]), sets)
    for name, deterministic in ((OURS, False), (f"{OURS}, deterministic", True)):
        yield "backward", name, raw_backward_calls(case, inputs, sets, deterministic=deterministic)


def peers(table: Table, cases: list[Case], settings: Settings) -> None:
    """Ours and all others by turns, so that each sees the same state of the device."""
    for case in cases:
        for dtype in DTYPES:
            value, offset_mask, _ = draw(case, dtype, settings)
            contest = Contest(
                case=str(case),
                dtype=dtype,
                ours=OURS,
                builders={n: partial(f, case, value, offset_mask) for n, f in PEERS.items()},
                error=partial(relative_error, case=case, value=value, offset_mask=offset_mask),
                bytes=memory_bytes(case, value.element_size(), False),
            )
            contest.run(table, settings)


def attention(
    table: Table, cases: list, settings: Settings, *, of: ModuleType = gpu_attention
) -> None:
    """Deformable attention, ours and the others' by turns; ``of`` has the cases' contenders."""
    if settings.device.type == "cpu":
        # A dry run need not take minutes.
        cases = [of.shrunk(case) for case in cases]
    for case in cases:
        for dtype in DTYPES:
            inputs = of.make_inputs(case, getattr(torch, dtype), settings.device)
            contest = Contest(
                case=str(case),
                dtype=dtype,
                ours=of.OURS,
                builders={
                    name: partial(build, case, *inputs) for name, build in of.CONTENDERS.items()
                },
                error=partial(of.relative_error, case=case, inputs=inputs),
                bytes=case.bytes(inputs[0].element_size()),
            )
            contest.run(table, settings)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Several operators on one case.

    Attributes:
        case: How the table calls it.
        dtype: Its dtype's name.
        ours: Name of the contender that must not fail.
        builders: What makes each contender; one may raise, for whatever reason of its own.
        error: Gives the relative error of an output.
        bytes: Size of the tensors of one call.
    """

    case: str
    dtype: str
    ours: str
    builders: dict[str, Callable[[], Contender]]
    error: Callable[[Tensor], float]
    bytes: int

    def run(self, table: Table, settings: Settings) -> None:
        for measured, make in (("forward", forward_calls), ("backward", backward_calls)):
            if not table.has(self.case, measured, self.dtype, self.ours):
                self._measure(table, measured, make, settings)

    def _measure(
        self,
        table: Table,
        measured: str,
        make: Callable[[Contender, int], list[Callable[[], object]]],
        settings: Settings,
    ) -> None:
        sets = buffer_sets(self.bytes, settings.device)
        timers: dict[str, Timer] = {}
        eager: dict[str, tuple[float, float]] = {}
        errors: dict[str, float] = {}
        for name, build in self.builders.items():
            try:
                contender = build()
                calls = make(contender, sets)
                timer = Timer(calls)
                eager[name] = eager_microseconds(calls[0], settings.eager_calls)
                if contender.same:
                    with torch.no_grad():
                        errors[name] = self.error(contender.function(*contender.inputs))
                timers[name] = timer
            # A peer may fail in any way of its own; that is a line, not our end.
            except Exception as error:
                if name == self.ours:
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                row = f"{self.case:22} {measured:9} {self.dtype:9} {name:30}"
                print(f"{row} n/a: {reason}", flush=True)
        times = interleave(timers, settings.repeats)
        # Ours last: its row says that the others' are written.
        for name in sorted(times, key=lambda name: name == self.ours):
            record(
                table,
                case=self.case,
                measured=measured,
                dtype=self.dtype,
                contender=name,
                microseconds=statistics.median(times[name]),
                spread_percent=spread_percent(times[name]),
                eager_microseconds=eager[name][0],
                host_microseconds=eager[name][1],
                relative_error=errors.get(name, ""),
            )


STAGES = {
    "bench": (bench, [*PAPER_CASES, *WIDE_CASES, *STAGE_CASES]),
    "peers": (peers, [*PAPER_CASES, *WIDE_CASES]),
    "attention": (attention, list(gpu_attention.CASES)),
    "bev": (partial(attention, of=gpu_bev), list(gpu_bev.CASES)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--cases", nargs="+", type=case_argument, metavar="NxHxWxGxD", help="these shapes instead"
    )
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--eager-calls", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder for CSV and plot")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git is not")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        operators = {"attention": gpu_attention.OURS, "bev": gpu_bev.OURS}
        operator = operators.get(arguments.stage, "dcnv4")
        serving = backend_info()[operator]["cuda"]
        if not torch.cuda.is_available():
            parser.error("no CUDA device is visible; --device cpu does a dry run")
        if not serving.startswith("compiled"):
            parser.error(f"the CUDA kernels of {operator} are not in use ({serving})")
    check_operator(torch.device(arguments.device))
    function, cases = STAGES[arguments.stage]
    if arguments.cases:
        if arguments.stage in ("attention", "bev"):
            parser.error(f"--cases are DCNv4's; {arguments.stage} has its own")
        cases = arguments.cases
    device = torch.device(arguments.device)
    dry_run = Path("work_dirs", "gpu-dry-run")
    folder = arguments.out or (RESULTS if device.type == "cuda" else dry_run)
    table = Table(
        f"gpu-{arguments.stage}",
        stage=arguments.stage,
        figures=FIGURES,
        folder=folder,
        device=device,
        commit=arguments.commit,
    )
    function(table, cases, Settings(device, arguments.repeats, arguments.eager_calls))
    picture = gpu_figures.plot(table.rows, table.path.with_suffix(".png"))
    print(f"saved {table.path} and {picture}")


if __name__ == "__main__":
    main()
