"""Trains a model of any OpenMMLab host: detection, segmentation, classification, 3D.

python tools/train.py CONFIG [--work-dir DIR] [--resume] [--cfg-options KEY=VALUE ...]
torchrun --nproc_per_node 2 tools/train.py CONFIG --launcher pytorch
"""

import argparse

from dcnv4_mm.cli.checks import check_checkpoint, check_data, make_folder
from dcnv4_mm.cli.configs import add_arguments, load_config, stop
from dcnv4_mm.cli.distributed import end_processes, start_processes
from dcnv4_mm.cli.guards import add_guards
from dcnv4_mm.cli.runner import build_runner, stop_if_unloadable


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a model.")
    parser.add_argument("config", help="config file")
    add_arguments(parser)
    parser.add_argument("--amp", action="store_true", help="mixed precision (needs a GPU)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="resume from this checkpoint, or from the latest readable one in the work folder",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate to the total batch size in use",
    )
    return parser.parse_args()


def use_amp(cfg) -> None:
    """Replaces the plain optimizer wrapper by the mixed-precision one."""
    import torch

    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        stop(f"--amp works with OptimWrapper, this config has {kind}")
    if not torch.cuda.is_available():
        stop("--amp needs a GPU, and torch sees none; leave it out")
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")


def use_safe_checkpoints(cfg) -> None:
    """Replaces mmengine's checkpoint hook by SafeCheckpointHook."""
    hook = cfg.get("default_hooks", {}).get("checkpoint")
    if hook and hook.get("type") == "CheckpointHook":
        hook.type = "dcnv4_mm.SafeCheckpointHook"


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_data(cfg, "train", "val")
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            stop("--auto-scale-lr needs auto_scale_lr.base_batch_size in the config")
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    if cfg.get("load_from"):
        check_checkpoint(cfg.load_from)
    use_safe_checkpoints(cfg)
    add_guards(cfg)
    make_folder(cfg.work_dir, "--work-dir")
    start_processes(cfg)
    try:
        runner = build_runner(cfg)
        stop_if_unloadable(runner, cfg.filename)
        runner.train()
    finally:
        end_processes()


if __name__ == "__main__":
    main()
