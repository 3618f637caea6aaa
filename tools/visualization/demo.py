"""Visualizes the predictions of a model on images.

python tools/visualization/demo.py IMAGE_OR_FOLDER CONFIG CHECKPOINT --out-dir DIR
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from dcnv4_mm.cli.checks import check_checkpoint, make_folder
from dcnv4_mm.cli.configs import read_config, stop
from dcnv4_mm.cli.images import check_results, find_images


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Visualize predictions on images.")
    parser.add_argument("input", type=Path, help="an image, or a folder of images")
    parser.add_argument("config", help="config file, or the name of one of this package")
    parser.add_argument("checkpoint", type=Path, help="checkpoint file")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs"), help="default: outputs")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score shown, default 0.3")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    return parser.parse_args()


def readable(images: list[Path]) -> list[Path]:
    """The images that can be decoded; warns about the others."""
    from PIL import Image

    found = []
    for path in images:
        try:
            with Image.open(path) as image:
                image.load()
        # A damaged file can make a decoder fail in any way.
        except Exception as error:
            print(f"warning: {path} is damaged or not an image: {error}", file=sys.stderr)
        else:
            found.append(path)
    return found or stop("none of the images can be read")


def dataset_meta(checkpoint: dict) -> dict:
    """What a checkpoint says about its classes; empty if nothing."""
    meta = checkpoint.get("meta")
    return (meta.get("dataset_meta") or {}) if isinstance(meta, dict) else {}


def detect(args: argparse.Namespace, images: list[Path]) -> list[Path]:
    """Draws boxes and masks with mmdet's inferencer."""
    from mmdet.apis import DetInferencer

    from dcnv4_mm.checkpoints import load_released
    from dcnv4_mm.checkpoints.files import naming_file, read_file

    try:
        checkpoint = read_file(args.checkpoint)
        with warnings.catch_warnings():
            # The inferencer would silently skip keys that do not match: load strictly here instead.
            warnings.filterwarnings("ignore", message="Checkpoint is not loaded|weights is None")
            inferencer = DetInferencer(str(args.config), device=args.device, show_progress=False)
        with naming_file(args.checkpoint):
            load_released(inferencer.model, checkpoint)
    except (ValueError, OSError) as error:
        stop(str(error))
    if meta := dataset_meta(checkpoint):
        inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta = meta
    results = inferencer(
        [str(p) for p in images], out_dir=str(args.out_dir), pred_score_thr=args.score
    )
    for path, result in zip(images, results["predictions"], strict=True):
        count = sum(score >= args.score for score in result["scores"])
        print(f"{path.name}: {count} objects of score {args.score:g} or more (--score)")
    return [args.out_dir / "vis" / p.name for p in images]


def segment(args: argparse.Namespace, images: list[Path]) -> list[Path]:
    """Draws the label maps of mmseg's inferencer, with a legend."""
    import cv2
    from mmengine.config import Config
    from mmseg.apis import MMSegInferencer

    from dcnv4_mm.checkpoints import load_released
    from dcnv4_mm.checkpoints.files import naming_file, read_file
    from dcnv4_mm.cli.overlay import overlay

    try:
        checkpoint = read_file(args.checkpoint)
        with warnings.catch_warnings():
            # As for detection: load strictly here instead.
            warnings.filterwarnings("ignore", message="Checkpoint is not loaded|weights is None")
            inferencer = MMSegInferencer(str(args.config), device=args.device)
        with naming_file(args.checkpoint):
            load_released(inferencer.model, checkpoint)
    except (ValueError, OSError) as error:
        stop(str(error))
    inferencer.show_progress = False
    classes, palette = class_names(Config.fromfile(args.config), checkpoint)
    drawn = []
    (args.out_dir / "vis").mkdir(exist_ok=True)
    for path in images:
        image = cv2.imread(str(path))
        if image is None:
            stop(f"{path} is damaged or not an image")
        labels = inferencer(image)["predictions"]
        drawn.append(args.out_dir / "vis" / path.name)
        cv2.imwrite(str(drawn[-1]), overlay(image, labels, classes, palette))
    return drawn


def class_names(cfg, checkpoint: dict) -> tuple[tuple[str, ...], list]:
    """Names and RGB colors of the classes: the checkpoint's, or those of the config's dataset."""
    from mmseg.registry import DATASETS

    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    # The second spelling is mmseg 0's.
    for found in (meta.get("dataset_meta") or {}, {k.lower(): v for k, v in meta.items()}):
        if found.get("classes") and found.get("palette"):
            return tuple(found["classes"]), found["palette"]
    dataset = cfg.test_dataloader.dataset
    found = {**DATASETS.get(dataset.type).METAINFO, **dataset.get("metainfo", {})}
    return tuple(found["classes"]), found["palette"]


def classify(args: argparse.Namespace, images: list[Path]) -> list[Path]:
    """Draws the most likely class into each image, and prints the five most likely."""
    from mmpretrain import ImageClassificationInferencer

    from dcnv4_mm.checkpoints import load_released
    from dcnv4_mm.checkpoints.files import naming_file, read_file

    try:
        checkpoint = read_file(args.checkpoint)
        inferencer = ImageClassificationInferencer(str(args.config), False, device=args.device)
        with naming_file(args.checkpoint):
            load_released(inferencer.model, checkpoint)
    except (ValueError, OSError) as error:
        stop(str(error))
    if meta := dataset_meta(checkpoint):
        inferencer.classes = meta["classes"]
    results = inferencer([str(p) for p in images], show_dir=str(args.out_dir))
    for path, result in zip(images, results, strict=True):
        scores = result["pred_scores"]
        best = scores.argsort()[::-1][:5]
        named = (f"{inferencer.classes[label]} {scores[label]:.2f}" for label in best)
        print(f"{path.name}: {', '.join(named)}")
    return [args.out_dir / f"{p.stem}.png" for p in images]


# Host -> the function that draws its predictions.
DRAWERS = {"mmdet": detect, "mmpretrain": classify, "mmseg": segment}


def main() -> None:
    args = parse_args()
    images = find_images(args.input)
    check_results(images, args.out_dir)
    check_checkpoint(args.checkpoint)
    cfg = read_config(args.config, [])
    args.config = cfg.filename
    host = cfg.get("default_scope", "mmdet")
    if host == "mmdet3d":
        stop("an image has no camera calibration: use bev_demo.py, which takes a sample")
    if host not in DRAWERS:
        stop(f"no demo for configs of {host}; there is one for {', '.join(DRAWERS)}")
    make_folder(args.out_dir, "--out-dir")
    logging.getLogger("mmengine").setLevel(logging.WARNING)
    for path in DRAWERS[host](args, readable(images)):
        print(path)


if __name__ == "__main__":
    main()
