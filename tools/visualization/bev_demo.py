"""Draws the boxes that a BEVFormerV2 finds in one sample: six cameras and a map.

    python tools/visualization/bev_demo.py CONFIG CHECKPOINT --index 0 --out boxes.jpg

The sample is one of the config's test set; ``--ground-truth`` draws its annotations instead.
"""

import argparse
from pathlib import Path

import cv2

from dcnv4_mm.cli.checks import check_checkpoint, check_data
from dcnv4_mm.cli.configs import add_cfg_options, read_config, stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file, or the name of one of this package")
    parser.add_argument("checkpoint", nargs="?", help="not needed with --ground-truth")
    parser.add_argument("--index", type=int, default=0, help="of the sample in the test set")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a box")
    parser.add_argument("--out", type=Path, default=Path("boxes.jpg"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ground-truth", action="store_true")
    add_cfg_options(parser)
    args = parser.parse_args()
    if not (args.checkpoint or args.ground_truth):
        parser.error("give a checkpoint, or --ground-truth")
    if not args.out.resolve().parent.is_dir():
        parser.error(f"the folder of --out {args.out} does not exist")
    if args.checkpoint:
        check_checkpoint(args.checkpoint)
    config = read_config(args.config, args.cfg_options)
    check_data(config, "test")
    if args.ground_truth:
        from mmengine.registry import DATASETS, init_default_scope

        init_default_scope("mmdet3d")
        dataset = DATASETS.build(config.test_dataloader.dataset)
        if not 0 <= args.index < len(dataset):
            stop(f"samples have the indexes 0 to {len(dataset) - 1}, got {args.index}")
        from dcnv4_mm.cli.bev_samples import draw_ground_truth

        picture, count = draw_ground_truth(dataset, args.index)
    else:
        picture, count = draw_predictions(config, args)
    cv2.imwrite(str(args.out), picture)
    print(f"{args.out}: {count} boxes")


def draw_predictions(config, args: argparse.Namespace):
    """The picture of a sample with what the model finds, and how many boxes that are."""
    from dcnv4_mm.bev.inferencer import MultiViewDet3DInferencer

    try:
        inferencer = MultiViewDet3DInferencer(
            config, args.checkpoint, device=args.device, show_progress=False
        )
        found = inferencer(args.index, return_vis=True, pred_score_thr=args.score)
    except ValueError as error:
        stop(str(error))
    scores = found["predictions"][0]["scores_3d"]
    return found["visualization"][0], sum(score >= args.score for score in scores)


if __name__ == "__main__":
    main()
