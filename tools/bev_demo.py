"""Draws the boxes that a BEVFormerV2 finds in one sample: six cameras and a map.

    python tools/bev_demo.py CONFIG CHECKPOINT --index 0 --out boxes.jpg

The sample is one of the config's test set; ``--ground-truth`` draws its annotations instead.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from _running import add_cfg_options, read_config


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
    from mmdet3d.registry import DATASETS
    from mmdet3d.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    config = read_config(args.config, args.cfg_options)
    data = DATASETS.build(config.test_dataloader.dataset)
    sample = data[args.index]
    if args.ground_truth:
        boxes, labels = ground_truth(data, args.index)
    else:
        boxes, labels = predict(config, args, sample)
    cv2.imwrite(str(args.out), draw_sample(sample, boxes, labels))
    print(f"{args.out}: {len(labels)} boxes")


def ground_truth(dataset, index: int) -> tuple:
    """Boxes and labels of a sample's annotations."""
    annotations = dataset.parse_ann_info(dataset.get_data_info(index))
    kept = annotations["gt_labels_3d"] >= 0
    return annotations["gt_bboxes_3d"][kept], annotations["gt_labels_3d"][kept]


def draw_sample(sample: dict, boxes, labels) -> np.ndarray:
    """Boxes in the six pictures of a sample's present moment, and beside them from above.

    Args:
        sample: Of the data set: ``inputs`` and ``data_samples``.
        boxes: mmdet3d's boxes in the LiDAR frame.
        labels: One per box.

    Returns:
        The picture, BGR.
    """
    from dcnv4_mm.bev.drawing import draw_bev, draw_boxes

    packed = sample["data_samples"]
    current = packed.frames.index(0)
    cameras = sample["inputs"]["img"].unflatten(0, (len(packed.frames), -1))[current]
    pictures = [
        draw_boxes(image.permute(1, 2, 0).numpy(), boxes, labels, matrix)
        for image, matrix in zip(cameras, packed.lidar2img[current], strict=True)
    ]
    # In the order in which one looks around: left, middle, right.
    rows = [np.hstack([pictures[i] for i in row]) for row in ((2, 0, 1), (5, 3, 4))]
    around = np.vstack(rows)
    return np.hstack((around, draw_bev(boxes, labels, size=around.shape[0])))


def predict(config, args: argparse.Namespace, sample: dict):
    """Boxes and labels that the model gives a score of at least ``args.score``."""
    import torch
    from mmdet3d.registry import MODELS
    from mmengine.model import revert_sync_batchnorm
    from mmengine.runner import load_checkpoint

    model = revert_sync_batchnorm(MODELS.build(config.model))
    load_checkpoint(model, args.checkpoint, map_location="cpu", strict=True)
    model.to(args.device).eval()
    batch = dict(inputs=dict(img=[sample["inputs"]["img"]]), data_samples=[sample["data_samples"]])
    with torch.no_grad():
        (result,) = model.test_step(batch)
    found = result.pred_instances_3d.to("cpu")
    kept = found.scores_3d >= args.score
    return found.bboxes_3d[kept], found.labels_3d[kept].numpy()


if __name__ == "__main__":
    main()
