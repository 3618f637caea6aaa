"""Evaluates a checkpoint with a config of any OpenMMLab host.

python tools/test.py CONFIG CHECKPOINT [--show-dir DIR] [--out FILE.pkl] [--tta]
"""

import argparse
import copy

from dcnv4_mm.cli.checks import check_checkpoint, check_data, make_folder
from dcnv4_mm.cli.configs import add_arguments, load_config, stop
from dcnv4_mm.cli.distributed import end_processes, start_processes
from dcnv4_mm.cli.guards import add_guards, hook_name
from dcnv4_mm.cli.runner import build_runner, stop_if_unloadable


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint.")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    add_arguments(parser)
    parser.add_argument("--out", metavar="FILE.pkl", help="write the predictions to this file")
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument(
        "--show-dir", metavar="DIR", help="save the visualized predictions to this folder"
    )
    parser.add_argument("--wait-time", type=float, default=2, help="seconds per window")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    args = parser.parse_args()
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"--out needs a name ending in .pkl, got {args.out}")
    return args


def show_predictions(cfg, args: argparse.Namespace) -> None:
    """Turns on the host's visualization hook; the hosts name its options differently."""
    hook = cfg.get("default_hooks", {}).get("visualization")
    if hook is None:
        stop("--show and --show-dir need default_hooks.visualization in the config")
    host = cfg.get("default_scope")
    hook["enable" if host == "mmpretrain" else "draw"] = True
    hook["show"], hook["wait_time"] = args.show, args.wait_time
    # By default mmseg draws every 50th image and mmpretrain every 5000th.
    hook["interval"] = 1
    if args.show_dir and host == "mmseg":
        cfg.visualizer["save_dir"] = args.show_dir
    elif args.show_dir:
        hook["out_dir" if host == "mmpretrain" else "test_out_dir"] = args.show_dir


def draw_in_rgb(visualizer) -> None:
    """Corrects the channel order: mmpretrain's hook passes BGR where RGB is expected."""
    draw = visualizer.visualize_cls
    visualizer.visualize_cls = lambda image, *args, **options: draw(
        image[..., ::-1].copy(), *args, **options
    )


def use_tta(cfg) -> None:
    """Wraps the model for test-time augmentation: the config's own, or flips for detection."""
    parts = (cfg.model, cfg.model.get("roi_head", {}))
    if cfg.get("default_scope") == "mmdet" and any(part.get("mask_head") for part in parts):
        stop("mmdet cannot average masks over copies: --tta is for models without masks")
    if cfg.get("default_scope") == "mmdet" and "tta_model" not in cfg:
        cfg.tta_model = {
            "type": "DetTTAModel",
            "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
        }
        pipeline = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
        pack = pipeline[-1]
        keys = [*pack.get("meta_keys", ()), "flip", "flip_direction"]
        pack["meta_keys"] = tuple(dict.fromkeys(keys))
        flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
        cfg.tta_pipeline = [*pipeline[:-1], {"type": "TestTimeAug", "transforms": [flips, [pack]]}]
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        stop("--tta needs tta_model and tta_pipeline in the config")
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = {**cfg.tta_model, "module": cfg.model}


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    check_data(cfg, "test")
    check_checkpoint(args.checkpoint)
    make_folder(cfg.work_dir, "--work-dir")
    cfg.load_from = args.checkpoint
    leave_out_averaging(cfg)
    add_guards(cfg)
    if args.show or args.show_dir:
        show_predictions(cfg, args)
    if args.tta:
        use_tta(cfg)
    start_processes(cfg)
    try:
        runner = build_runner(cfg)
        if hasattr(runner.visualizer, "visualize_cls"):
            draw_in_rgb(runner.visualizer)
        if args.out:
            runner.test_evaluator.metrics.append(dump_metric(cfg, args.out))
        stop_if_unloadable(runner, cfg.filename)
        runner.test()
    finally:
        end_processes()


def leave_out_averaging(cfg) -> None:
    """Removes the hooks that average weights: a checkpoint already holds the averages."""
    hooks = cfg.get("custom_hooks") or []
    cfg.custom_hooks = [hook for hook in hooks if not hook_name(hook).endswith("EMAHook")]


def dump_metric(cfg, path: str):
    """The metric that only writes the predictions; the detection host packs masks first."""
    if cfg.get("default_scope") == "mmdet":
        from mmdet.evaluation import DumpDetResults as DumpResults
    else:
        from mmengine.evaluator import DumpResults
    return DumpResults(out_file_path=path)


if __name__ == "__main__":
    main()
