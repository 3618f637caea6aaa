"""Measures the speed and memory of a config's model in inference, batch size by batch size.

    python tools/analysis_tools/benchmark.py CONFIG [--batch-sizes 1 2 4] [--out speed.csv]

A call is one test step: normalisation and padding, the network, and the host's post-processing;
loading images is not included. Stop other work first.
"""

import argparse
import csv
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from dcnv4_mm.cli.configs import add_cfg_options, read_config, stop
from dcnv4_mm.cli.models import add_batch_arguments, build_model, make_batch

DTYPES = ("float32", "bfloat16", "float16")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure latency, throughput and memory.")
    parser.add_argument("config", help="config file, or the name of one of this package")
    parser.add_argument("--checkpoint", help="weights; the number of boxes found affects the speed")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1], metavar="N")
    add_batch_arguments(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="autocast dtype")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="per batch size, default 5")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write the results here")
    add_cfg_options(parser)
    args = parser.parse_args()
    if min(args.batch_sizes) < 1 or args.seconds <= 0:
        parser.error("--batch-sizes and --seconds must be positive")
    if args.out and not args.out.resolve().parent.is_dir():
        parser.error(f"the folder of {args.out} does not exist")
    return args


def measure(call: Callable[[], object], device: str, seconds: float) -> tuple[list[float], float]:
    """Times a function after three warm-up calls.

    Args:
        call: The function.
        device: The device it runs on.
        seconds: How long to measure, with at least three calls.

    Returns:
        Seconds of each call, and the peak memory in MiB: allocated by torch on a GPU, resident in
        the process on the CPU.
    """
    import torch

    on_gpu = device.startswith("cuda")
    for _ in range(3):
        call()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Resets the peak to the memory in use now.
        Path("/proc/self/clear_refs").write_text("5")
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        if on_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    if on_gpu:
        return times, torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text()
    return times, int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**10


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    import torch
    from mmengine.device import get_device

    from dcnv4_mm.ops.functional import backend_info

    device = args.device or get_device()
    model = build_model(cfg, args.checkpoint).to(device)
    rows = []
    for count in args.batch_sizes:
        batch = make_batch(cfg, args, count)
        kind, dtype = device.split(":")[0], getattr(torch, args.dtype)
        try:
            with torch.inference_mode(), torch.autocast(kind, dtype, dtype != torch.float32):
                times, memory = measure(lambda: model.test_step(batch), device, args.seconds)  # noqa: B023
        except torch.OutOfMemoryError:
            stop(f"batches of {count} do not fit into the memory of {device}")
        median = statistics.median(times)
        rows.append(
            {
                "config": Path(args.config).stem,
                "batch_size": count,
                "dtype": args.dtype,
                "milliseconds": f"{1e3 * median:.2f}",
                "slowest_milliseconds": f"{1e3 * max(times):.2f}",
                "per_second": f"{count / median:.3f}",
                "memory_mib": f"{memory:.0f}",
                "calls": len(times),
                "device": torch.cuda.get_device_name(device) if kind == "cuda" else device,
                "threads": torch.get_num_threads(),
                "dcnv4": backend_info()["dcnv4"][kind],
                "torch": torch.__version__,
            }
        )
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        write(rows, args.out)


def write(rows: list[dict], path: Path | None) -> None:
    """Writes the results so far, if a file is given."""
    if path is None:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
