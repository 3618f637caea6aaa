"""Measures operators, layers and networks on a CPU or a GPU.

    python benchmarks/run.py                            # everything that this machine can measure
    python benchmarks/run.py dcnv4 --threads 1 2 --dtypes float32 bfloat16
    python benchmarks/run.py backbones --device cuda
    python benchmarks/run.py --list

The implementations of a row are timed interleaved in one process, and nothing is timed if the
operator is wrong. A row is written as soon as it is measured; an interrupted benchmark continues
(delete its file to repeat it). Stop other work first.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import torch
from compare import Settings
from measure import RESULTS, Table, commit
from operators.cases import case_argument
from operators.dcnv4 import check_operator

from dcnv4_mm.ops.functional import backend_info

# Name -> module, function, operator that is measured, what it is.
BENCHMARKS = {
    "dcnv4": ("operators.dcnv4", "run", "dcnv4", "DCNv4 and other formulations"),
    "dcnv4_modes": ("operators.dcnv4", "run_modes", "dcnv4", "its CUDA kernels in every mode"),
    "dcnv4_memory": ("operators.dcnv4", "run_memory", "dcnv4", "its peak memory"),
    "host_time": ("operators.host_time", "run_host_time", "dcnv4", "its calls on a few elements"),
    "dcnv3": ("operators.dcnv3", "run", "dcnv4", "DCNv3 and grid_sample"),
    "flash_deform_attn": ("operators.flash_deform_attn", "run", "ms_deform_attn", "of DINO"),
    "bev_cross_attn": ("operators.bev_cross_attn", "run", "bev_cross_attn", "of BEVFormerV2"),
    "bev_encoder": ("models.bev_encoder", "run", "bev_cross_attn", "BEVFormerV2's encoder"),
    "layers": ("models.layers", "run", "dcnv4", "the paper's operators with their projections"),
    "ablation": ("models.ablation", "run", "dcnv4", "what the paper removed from DCNv3, restored"),
    "operator_share": ("models.backbones", "run_operator_share", "dcnv4", "with grid_sample"),
    "backbones": ("models.backbones", "run", "dcnv4", "images per second"),
    "fuse": ("models.fuse", "run", "dcnv4", "fuse() before inference"),
    "scaling": ("models.backbones", "run_scaling", "dcnv4", "time by image and batch size"),
    "detectors": ("models.detectors", "run", "dcnv4", "the same of detectors and segmentors"),
    "swap_attention": ("models.attention", "run", "ms_deform_attn", "DETRs, the attention swapped"),
    "drop_in": ("models.drop_in", "run", "dcnv4", "ConvNeXt-B and ViT-B with DCNv4"),
    "export": ("models.export", "run", "dcnv4", "eager mode, compiled, exported"),
    "training": ("models.detectors", "run_training", "dcnv4", "a step's time and memory"),
    "processes": ("models.processes", "run", "dcnv4", "a step of several processes"),
    "convergence": ("models.convergence", "run", "dcnv4", "how fast networks learn"),
}
CPU_ONLY = ("host_time", "bev_encoder", "operator_share", "drop_in", "export")
GPU_ONLY = ("dcnv4_modes",)
DTYPES = ("float64", "float32", "float16", "bfloat16")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("benchmarks", nargs="*", metavar="benchmark")
    add("--list", action="store_true", help="print the benchmarks and exit")
    on_gpu = torch.cuda.is_available()
    add("--device", choices=("cuda", "cpu"), default="cuda" if on_gpu else "cpu")
    add("--dtypes", nargs="+", choices=DTYPES, help="default: float32; all but float64 on a GPU")
    add("--threads", nargs="+", type=int, help="CPU threads, each measured")
    add("--seconds", type=float, default=8.0, help="for each comparison; 0 for a dry run")
    add("--turns", type=int, help="the smallest number of turns of each comparison")
    add(
        "--cases",
        nargs="+",
        type=case_argument,
        metavar="NxHxWxGxD",
        help="of operators and layers",
    )
    add("--sizes", nargs="+", choices=("nano", "t", "s", "b", "l"), help="model sizes")
    add("--image", type=int, help="rows and columns of the images")
    add("--batch", type=int, help="number of images")
    add("--methods", nargs="*", help="detectors and segmentors, such as DINO")
    add("--implementations", nargs="+", help="networks for processes and convergence")
    add("--processes", type=int, help="maximum number of processes")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="for convergence")
    add("--epochs", type=int, default=15, help="for convergence")
    add("--per-class", type=int, default=240, help="images that convergence learns from")
    add("--tiny", action="store_true", help="small cases of attention, for dry runs")
    add("--out", type=Path, default=RESULTS, help="folder for CSV files and plots")
    add("--commit", default=commit(), help="what is measured, where git is not")
    arguments = parser.parse_args()
    unknown = set(arguments.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {min(unknown)!r}, choose from {', '.join(BENCHMARKS)}")
    if arguments.device == "cuda" and not on_gpu:
        parser.error("no CUDA device is visible; --device cpu measures the CPU")
    return arguments


def settings_of(arguments: argparse.Namespace) -> Settings:
    on_gpu = arguments.device == "cuda"
    return Settings(
        device=torch.device(arguments.device),
        dtypes=arguments.dtypes or (["float16", "bfloat16", "float32"] if on_gpu else ["float32"]),
        threads=arguments.threads or [torch.get_num_threads()],
        seconds=arguments.seconds,
        turns=arguments.turns,
        options=arguments,
    )


def run_one(name: str, arguments: argparse.Namespace) -> None:
    """Measures one benchmark; raises SystemExit if the operator is wrong or not compiled."""
    module, function, operator, _ = BENCHMARKS[name]
    device = torch.device(arguments.device)
    if device.type == "cuda" and name in CPU_ONLY:
        raise SystemExit(f"error: {name} is measured on a CPU; add --device cpu")
    kernels = backend_info()[operator][device.type]
    if not kernels.startswith("compiled"):
        raise SystemExit(f"error: the kernels of {operator} are not in use ({kernels})")
    settings = settings_of(arguments)
    torch.set_num_threads(settings.threads[-1])
    check_operator(device)
    table = Table(
        name, folder=arguments.out, device=device, kernels=kernels, commit=arguments.commit
    )
    getattr(importlib.import_module(module), function)(table, settings)
    print(f"saved {table.path}")
    try:
        import plots
    except ImportError as error:
        print(f"no plot: {error}")
        return
    if plots.plot(table.rows, table.path.with_suffix(".png")):
        print(f"saved {table.path.with_suffix('.png')}")


def main() -> None:
    arguments = parse()
    if arguments.list:
        for name, (*_, what) in BENCHMARKS.items():
            print(f"{name:18} {what}")
        return
    if len(arguments.benchmarks) == 1:
        run_one(arguments.benchmarks[0], arguments)
        return
    others = CPU_ONLY if arguments.device == "cuda" else GPU_ONLY
    names = arguments.benchmarks or [name for name in BENCHMARKS if name not in others]
    # In processes of their own: measuring memory changes how a process allocates.
    given = [argument for argument in sys.argv[1:] if argument not in names]
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, __file__, name, *given], check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"error: these failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
