"""Measures a training step of one process and of several together (DistributedDataParallel).

    python benchmarks/processes.py [--device cuda]     # one process for each GPU, or for each core

Every process has a batch of its own. Beside the step, the all-reduce of as many bytes as there are
gradients: if nothing hid it, a step would take that much longer than a single process's. All
numbers of processes run by turns. A second run measures what the table does not have yet. Stop
other work first.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from contest import FIGURES, Call, record
from gate import check_operator
from layers import spread_offsets
from measure import RESULTS, commit, spread
from networks import INTERNIMAGES, SIZES, make_backbone
from table import Table
from torch.nn.parallel import DistributedDataParallel


def name_case(arguments: argparse.Namespace, count: int) -> str:
    shape = f"{arguments.batch}x{arguments.image}x{arguments.image}"
    return f"{arguments.size.upper()} {shape} on {count}"


def make_step(
    family: str, arguments: argparse.Namespace, device: torch.device, group: dist.ProcessGroup
) -> tuple[Call, int]:
    """A training step of a backbone in a group of processes, and its number of parameters."""
    torch.manual_seed(0)
    backbone = make_backbone(family, arguments.size).to(device)
    images = torch.randn(arguments.batch, 3, arguments.image, arguments.image, device=device)
    spread_offsets(backbone, images[:1])
    devices = [device] if device.type == "cuda" else None
    model = DistributedDataParallel(backbone, device_ids=devices, process_group=group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        sum(maps.square().mean() for maps in model(images)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(parameter.numel() for parameter in backbone.parameters())


def by_turns(
    calls: dict[int, Call], groups: dict[int, dist.ProcessGroup], seconds: float
) -> dict[int, list[float]]:
    """Milliseconds until the last process of a group is done, by number of processes.

    Args:
        calls: What this process does in the groups that it is in.
        groups: All of them.
        seconds: How long to measure; at least seven turns.
    """
    times: dict[int, list[float]] = {count: [] for count in groups}
    everybody = groups[max(groups)]
    end = time.perf_counter() + seconds
    while True:
        for count, group in groups.items():
            dist.barrier(everybody)
            start = time.perf_counter()
            if count in calls:
                calls[count]()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                dist.barrier(group)
            times[count].append(1e3 * (time.perf_counter() - start))
        # The first process's clock counts for all.
        go_on = [time.perf_counter() < end or len(times[1]) < (8 if seconds else 2)]
        dist.broadcast_object_list(go_on, 0, everybody)
        if not go_on[0]:
            return {count: some[1:] for count, some in times.items()}


def work(rank: int, arguments: argparse.Namespace, rendezvous: str, table: Table | None) -> None:
    """What each process does; the first has the table."""
    on_gpu = arguments.device == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=arguments.processes,
    )
    groups = {count: dist.new_group(range(count)) for count in range(1, arguments.processes + 1)}
    mine = {count: group for count, group in groups.items() if rank < count}
    for family in arguments.families:
        steps, reductions, parameters = {}, {}, 0
        for count, group in mine.items():
            steps[count], parameters = make_step(family, arguments, device, group)
            gradients = torch.zeros(parameters, device=device)
            reductions[count] = lambda some=gradients, group=group: dist.all_reduce(
                some, group=group
            )
        times = {
            measured: by_turns(calls, groups, arguments.seconds)
            for measured, calls in (("training step", steps), ("all-reduce", reductions))
        }
        # Only when all is measured: what the table has of a network is complete.
        for measured, count in product(times, groups) if table else ():
            if table.has(name_case(arguments, count), measured, "float32", family):
                continue
            some = times[measured][count]
            median = statistics.median(some)
            record(
                table,
                case=name_case(arguments, count),
                measured=measured,
                dtype="float32",
                contender=family,
                milliseconds=median,
                spread_percent=spread(some) if len(some) > 1 else "",
                images_per_second=1e3 * count * arguments.batch / median,
                parameters_millions=1e-6 * parameters,
            )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if on_gpu else "cpu")
    parser.add_argument("--processes", type=int, help="at most so many")
    parser.add_argument("--families", nargs="+", choices=INTERNIMAGES, default=list(INTERNIMAGES))
    parser.add_argument("--size", choices=SIZES, default="t", help="of the networks")
    parser.add_argument("--image", type=int, help="rows and columns of the pictures")
    parser.add_argument("--batch", type=int, help="pictures of a process")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each network")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the CSV file")
    parser.add_argument("--commit", default=commit(), help="what is measured, where git is not")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    most = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    arguments.processes = arguments.processes or most
    if not 1 <= arguments.processes <= most:
        parser.error(f"--processes must be in 1..{most} here, got {arguments.processes}")
    arguments.image = arguments.image or (224 if on_gpu else 160)
    arguments.batch = arguments.batch or (64 if on_gpu else 2)
    device = torch.device(arguments.device)
    check_operator(device)
    table = Table(
        "processes",
        stage="processes",
        figures=FIGURES,
        folder=arguments.out,
        device=device,
        commit=arguments.commit,
    )
    case = name_case(arguments, arguments.processes)
    arguments.families = [
        family
        for family in arguments.families
        if not table.has(case, "all-reduce", "float32", family)
    ]
    if not arguments.families:
        print(f"saved {table.path}")
        return
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        others = torch.multiprocessing.get_context("spawn")
        started = [
            others.Process(target=work, args=(rank, arguments, rendezvous, None))
            for rank in range(1, arguments.processes)
        ]
        for process in started:
            process.start()
        work(0, arguments, rendezvous, table)
        for process in started:
            process.join()
    print(f"saved {table.path}")


if __name__ == "__main__":
    main()
