"""Visualizes the samples of a dataset after its pipeline: crops, flips and the rest.

python tools/analysis_tools/browse_dataset.py CONFIG [--phase train] [--count 16] [--out-dir DIR]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from dcnv4_mm.cli.checks import check_data, make_folder
from dcnv4_mm.cli.configs import add_cfg_options, read_config, stop


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Visualize the samples of a dataset.")
    parser.add_argument("config", help="config file, or the name of one of this package")
    parser.add_argument("--phase", choices=("train", "val", "test"), default="train")
    parser.add_argument("--count", type=int, default=16, help="how many, default 16")
    parser.add_argument("--out-dir", type=Path, default=Path("browsed"), help="default: browsed")
    add_cfg_options(parser)
    return parser.parse_args()


def image_of(sample: dict) -> np.ndarray:
    """The image (H, W, 3) of a sample in RGB; the hosts' loaders read BGR."""
    return np.ascontiguousarray(sample["inputs"].permute(1, 2, 0).numpy()[..., ::-1])


def detection_drawer(dataset) -> Callable[[int], np.ndarray]:
    """Boxes and masks."""
    from mmdet.models.utils import mask2ndarray
    from mmdet.structures.bbox import BaseBoxes
    from mmdet.visualization import DetLocalVisualizer

    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dataset.metainfo

    def draw(index: int) -> np.ndarray:
        sample = dataset[index]
        truth = sample["data_samples"].gt_instances
        if isinstance(truth.get("bboxes"), BaseBoxes):
            truth.bboxes = truth.bboxes.tensor
        if "masks" in truth:
            truth.masks = mask2ndarray(truth.masks).astype(bool)
        visualizer.add_datasample("", image_of(sample), sample["data_samples"], draw_pred=False)
        return visualizer.get_image()[..., ::-1]

    return draw


def segmentation_drawer(dataset) -> Callable[[int], np.ndarray]:
    """Label maps, with a legend."""
    from dcnv4_mm.cli.overlay import overlay

    classes, palette = dataset.metainfo["classes"], dataset.metainfo["palette"]

    def draw(index: int) -> np.ndarray:
        sample = dataset[index]
        labels = sample["data_samples"].gt_sem_seg.data[0].numpy()
        return overlay(image_of(sample)[..., ::-1], labels, classes, palette)

    return draw


def classification_drawer(dataset) -> Callable[[int], np.ndarray]:
    """Class names."""
    from mmpretrain.visualization import UniversalVisualizer

    visualizer = UniversalVisualizer()

    def draw(index: int) -> np.ndarray:
        sample = dataset[index]
        # Large enough for the text.
        image = visualizer.visualize_cls(
            image_of(sample), sample["data_samples"], classes=dataset.CLASSES, rescale_factor=2
        )
        return image[..., ::-1]

    return draw


def bev_drawer(dataset) -> Callable[[int], np.ndarray]:
    """Boxes in the camera images and from above."""
    from dcnv4_mm.cli.bev_samples import draw_ground_truth

    return lambda index: draw_ground_truth(dataset, index)[0]


DRAWERS = {
    "mmdet": detection_drawer,
    "mmseg": segmentation_drawer,
    "mmpretrain": classification_drawer,
    "mmdet3d": bev_drawer,
}


def main() -> None:
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    if cfg.default_scope not in DRAWERS:
        stop(f"cannot draw datasets of {cfg.default_scope}, only of {', '.join(DRAWERS)}")
    check_data(cfg, args.phase)
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg[f"{args.phase}_dataloader"].dataset)
    draw = DRAWERS[cfg.default_scope](dataset)
    make_folder(args.out_dir, "--out-dir")
    for index in range(min(args.count, len(dataset))):
        path = args.out_dir / f"{index:05}.jpg"
        cv2.imwrite(str(path), draw(index))
        print(path)


if __name__ == "__main__":
    main()
