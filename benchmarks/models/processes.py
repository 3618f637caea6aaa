"""A training step of one process and of several together (DistributedDataParallel).

One process for each GPU, or for each core. Every process has a batch of its own. Beside the step,
the all-reduce of as many bytes as there are gradients: if nothing hid it, a step would take that
much longer than a single process's. All numbers of processes are timed interleaved.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from compare import Settings
from measure import Call, Table, interleaved, spread
from models.networks import INTERNIMAGES, make_backbone, spread_offsets
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings that every process receives."""

    device: str
    processes: int
    families: list[str]
    size: str
    image: int
    batch: int
    seconds: float

    def case(self, count: int) -> str:
        return f"{self.size.upper()} {self.batch}x{self.image}x{self.image} on {count}"


def make_step(
    family: str, job: Job, device: torch.device, group: dist.ProcessGroup
) -> tuple[Call, int]:
    """A training step of a backbone in a group of processes, and its number of parameters."""
    torch.manual_seed(0)
    backbone = make_backbone(family, job.size).to(device)
    images = torch.randn(job.batch, 3, job.image, job.image, device=device)
    spread_offsets(backbone, images[:1])
    devices = [device] if device.type == "cuda" else None
    model = DistributedDataParallel(backbone, device_ids=devices, process_group=group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        sum(maps.square().mean() for maps in model(images)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(parameter.numel() for parameter in backbone.parameters())


def interleaved_groups(
    calls: dict[int, Call], groups: dict[int, dist.ProcessGroup], seconds: float
) -> dict[int, list[float]]:
    """Milliseconds until the last process of a group is done, by number of processes.

    Args:
        calls: What this process does in the groups that it is in.
        groups: All of them.
        seconds: How long to measure; at least seven turns, for 0 seconds one.
    """
    everybody = groups[max(groups)]

    def timer(count: int) -> float:
        dist.barrier(everybody)
        start = time.perf_counter()
        if count in calls:
            calls[count]()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            dist.barrier(groups[count])
        return 1e3 * (time.perf_counter() - start)

    def agree(go_on: bool) -> bool:
        decision = [go_on]  # of the first process
        dist.broadcast_object_list(decision, 0, everybody)
        return decision[0]

    timers = {count: partial(timer, count) for count in groups}
    return interleaved(timers, seconds=seconds, turns=7 if seconds else 1, agree=agree)


def work(rank: int, job: Job, rendezvous: str, table: Table | None) -> None:
    """Main function of each process; the first has the table."""
    on_gpu = job.device == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=job.processes,
    )
    groups = {count: dist.new_group(range(count)) for count in range(1, job.processes + 1)}
    mine = {count: group for count, group in groups.items() if rank < count}
    for family in job.families:
        steps, reductions, parameters = {}, {}, 0
        for count, group in mine.items():
            steps[count], parameters = make_step(family, job, device, group)
            gradients = torch.zeros(parameters, device=device)
            reductions[count] = lambda some=gradients, group=group: dist.all_reduce(
                some, group=group
            )
        times = {
            measured: interleaved_groups(calls, groups, job.seconds)
            for measured, calls in (("training step", steps), ("all-reduce", reductions))
        }
        # Only when all is measured: what the table has of a network is complete.
        for measured, count in product(times, groups) if table else ():
            row = dict(case=job.case(count), measured=measured, dtype="float32")
            if table.has(**row, implementation=family):
                continue
            median = statistics.median(times[measured][count])
            table.add(
                **row,
                implementation=family,
                milliseconds=median,
                spread_percent=spread(times[measured][count]),
                images_per_second=1e3 * count * job.batch / median,
                parameters_millions=1e-6 * parameters,
            )
    dist.destroy_process_group()


def run(table: Table, settings: Settings) -> None:
    """Steps and reductions of one to all processes."""
    options = settings.options
    most = torch.cuda.device_count() if settings.on_gpu else len(os.sched_getaffinity(0))
    processes = options.processes or most
    if not 1 <= processes <= most:
        raise SystemExit(f"error: --processes must be in 1..{most} here, got {processes}")
    job = Job(
        device=settings.device.type,
        processes=processes,
        families=[],
        size=(options.sizes or ["t"])[0],
        image=options.image or (224 if settings.on_gpu else 160),
        batch=options.batch or (64 if settings.on_gpu else 2),
        seconds=settings.seconds,
    )
    last = dict(case=job.case(processes), measured="all-reduce", dtype="float32")
    families = options.implementations or INTERNIMAGES
    job.families.extend(f for f in families if not table.has(**last, implementation=f))
    if not job.families:
        return
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        context = torch.multiprocessing.get_context("spawn")
        others = [
            context.Process(target=work, args=(rank, job, rendezvous, None))
            for rank in range(1, processes)
        ]
        for process in others:
            process.start()
        work(0, job, rendezvous, table)
        for process in others:
            process.join()
