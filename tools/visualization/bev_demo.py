"""Draws the boxes that a BEVFormerV2 predicts for a sample or a scene: cameras and bird's-eye view.

    python tools/visualization/bev_demo.py CONFIG CHECKPOINT --index 0 --out boxes.jpg
    python tools/visualization/bev_demo.py CONFIG CHECKPOINT --scene --out scene.mp4

The samples are those of the config's test set. ``--ground-truth`` draws the annotations too, in
magenta, or without a checkpoint the annotations alone.
"""

import argparse
from pathlib import Path

from dcnv4_mm.cli.checks import check_checkpoint, check_data
from dcnv4_mm.cli.configs import add_cfg_options, naming_missing, read_config, stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file, or the name of one of this package")
    parser.add_argument("checkpoint", nargs="?", help="not needed with --ground-truth")
    parser.add_argument("--index", type=int, default=0, help="of the sample in the test set")
    parser.add_argument("--scene", action="store_true", help="all samples of that sample's scene")
    parser.add_argument("--fps", type=float, default=2.0, help="of the video of a scene")
    parser.add_argument("--score", type=float, default=0.3, help="minimum score of a box")
    parser.add_argument(
        "--out", type=Path, default=Path("boxes.jpg"), help="an image; .mp4 or .gif for a scene"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ground-truth", action="store_true", help="draw the annotations")
    add_cfg_options(parser)
    args = parser.parse_args()
    if not (args.checkpoint or args.ground_truth):
        parser.error("give a checkpoint, or --ground-truth")
    if not args.out.resolve().parent.is_dir():
        parser.error(f"the folder of --out {args.out} does not exist")
    if args.scene != (args.out.suffix in (".mp4", ".gif")):
        parser.error(f"--out: expected .mp4 or .gif with --scene, an image without; got {args.out}")
    if args.checkpoint:
        check_checkpoint(args.checkpoint)
    config = read_config(args.config, args.cfg_options)
    check_data(config, "test")
    dataset, draw = make_drawer(config, args)
    if not 0 <= args.index < len(dataset):
        stop(f"--index: expected 0 to {len(dataset) - 1}, got {args.index}")
    if not args.scene:
        image, count = draw(args.index)
        import cv2

        cv2.imwrite(str(args.out), image)
        print(f"{args.out}: {count} boxes")
        return
    from dcnv4_mm.bev.video import write_video

    images = (draw(index)[0] for index in dataset.scene(args.index))
    print(f"{args.out}: {write_video(args.out, images, fps=args.fps)} samples")


def make_drawer(config, args: argparse.Namespace):
    """The test set, and a function from an index to an image and its number of boxes."""
    if not args.checkpoint:
        from mmengine.registry import DATASETS, init_default_scope

        from dcnv4_mm.cli.bev_samples import draw_ground_truth

        init_default_scope("mmdet3d")
        dataset = DATASETS.build(config.test_dataloader.dataset)
        return dataset, lambda index: draw_ground_truth(dataset, index)
    from dcnv4_mm.bev.inferencer import MultiViewDet3DInferencer

    options = dict(device=args.device, show_progress=False)
    try:
        inferencer = MultiViewDet3DInferencer(config, args.checkpoint, **options)
    except ValueError as error:
        stop(str(error))

    def draw(index: int):
        found = inferencer(
            index, return_vis=True, pred_score_thr=args.score, ground_truth=args.ground_truth
        )
        scores = found["predictions"][0]["scores_3d"]
        return found["visualization"][0], sum(score >= args.score for score in scores)

    return inferencer.dataset, draw


if __name__ == "__main__":
    with naming_missing():
        main()
